"""The papers' recipes compose, and every value is the one that `recipe_values` has with its source."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.support.recipe_values import ALL, PIXELS, VALUES, VARIANTS
from verl_stvg.data_builders.templates import find

RECIPES = Path(__file__).resolve().parent.parent.parent / "recipes"
# what belongs together in practice: adapters and a smaller base on one GPU, a variant with ablations
TOGETHER = [
    ("stvg_r1", ("lora", "qwen2_5_vl_3b", "one_gpu")),
    ("videotg_r1", ("dapo", "no_curriculum", "no_format")),
    ("time_r1", ("timezero", "no_format")),
]


def plain(config, key: str):
    value = OmegaConf.select(config, key, throw_on_missing=True)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def accepted_by_verl(config) -> None:
    """verl's own checks of a configuration."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = copy.deepcopy(config)
    config.data.custom_cls.path = "pkg://another"  # rows and machine are not looked at here
    validate_config(config, need_reference_policy(config), need_critic(config))


def alarms(config) -> list[str]:
    """What the checks before a run say of values and names."""
    from verl_stvg.launch import config_checks
    from verl_stvg.launch.key_checks import unknown_keys

    checks = (config_checks.other_kinds, config_checks.unknown_names, config_checks.unknown_reward_options)
    found = [*unknown_keys(config), *config_checks.clip_ratio_that_is_not_read(config)]
    return [*found, *(problem for check in checks for problem in check(config))]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ALL)
def test_every_value_is_the_one_in_the_table(composed, recipe):
    config = composed(recipe)
    wrong = {v.key: (plain(config, v.key), v.value) for v in VALUES[recipe] if plain(config, v.key) != v.value}
    assert not wrong
    assert len({value.key for value in VALUES[recipe]}) == len(VALUES[recipe])
    assert alarms(config) == []


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ALL)
def test_batches_divide_over_one_eight_and_sixteen_gpus(composed, recipe):
    from verl_stvg.launch.key_checks import indivisible_batches

    for gpus, nodes in ((1, 1), (8, 1), (8, 2)):
        config = copy.deepcopy(composed(recipe))
        config.trainer.n_gpus_per_node, config.trainer.nnodes = gpus, nodes
        assert indivisible_batches(config) == []
        accepted_by_verl(config)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_sets_what_it_says(composed, variant):
    from verl_stvg.launch.key_checks import indivisible_batches

    recipes, values = VARIANTS[variant]
    recipe = recipes[list(VARIANTS).index(variant) % len(recipes)]  # every recipe has its turn
    config = composed(recipe, variant)
    assert {key: plain(config, key) for key in values} == values
    assert indivisible_batches(config) == [] and alarms(config) == []


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "variants"), TOGETHER)
def test_variants_compose_with_one_another(composed, recipe, variants):
    config = composed(recipe, *variants)
    for name in variants:
        assert {key: plain(config, key) for key in VARIANTS[name][1]} == VARIANTS[name][1]
    assert alarms(config) == []
    if "lora" not in variants:  # verl would import vLLM to look at the rank
        accepted_by_verl(config)


@pytest.mark.slow
def test_a_curriculum_as_the_plugin_reads_it(composed):
    from verl_stvg.training.curriculum import Curriculum

    fields = dict(plain(composed("videotg_r1"), "data.curriculum"))
    assert fields.pop("enabled") and fields.pop("_target_")
    assert Curriculum(**{**fields, "bins": tuple(fields["bins"])}) == Curriculum()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ALL)
def test_every_section_of_ours_is_a_dataclass_as_verls_own_are(composed, recipe):
    """verl's way makes the object that the plugin works with, and the yaml states the defaults of the dataclass."""
    from verl.utils.config import omega_conf_to_dataclass

    from verl_stvg.rows.settings import VideoCache
    from verl_stvg.training.curriculum import Curriculum
    from verl_stvg.training.sampler import Draw, Rollouts

    kinds = {"video_cache": VideoCache, "curriculum": Curriculum, "draw": Draw, "rollouts": Rollouts}
    for name, kind in kinds.items():
        given = composed(recipe).data[name]
        made = omega_conf_to_dataclass(given)
        assert type(made) is kind and made == kind()
        assert given.keys() - {"_target_"} == {field.name for field in dataclasses.fields(kind)}
    assert composed(recipe).data.curriculum.enabled == (recipe == "videotg_r1")


def test_every_variant_has_a_file_and_the_other_way_round():
    assert {path.stem for path in (RECIPES / "variant").glob("*.yaml")} == set(VARIANTS)


@pytest.mark.parametrize("recipe", ALL)
def test_the_readme_has_the_same_table(recipe):
    text = (RECIPES / recipe / "README.md").read_text()
    missing = [value.row for value in VALUES[recipe] if value.row not in text.splitlines()]
    assert not missing, "\n".join(missing)
    named = [variant for variant, (recipes, _) in VARIANTS.items() if recipe in recipes]
    assert [variant for variant in named if f"`{variant}`" not in text] == []


@pytest.mark.parametrize("recipe", ALL)
def test_rows_sample_frames_as_the_paper_does(recipe):
    template, videos = PIXELS[recipe]
    assert dict(find(template).videos) == videos


def run_sh(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    command = ["bash", RECIPES / "run.sh", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": path, **environment})


@pytest.mark.parametrize("recipe", ALL)
def test_run_sh_says_what_it_needs(recipe):
    done = run_sh(recipe, "8")
    assert done.returncode != 0 and "ROWS" in done.stderr


@pytest.mark.parametrize("arguments", [(), ("8",), ("stvg-r1", "8"), ("variant", "8"), ("", "8")])
def test_run_sh_refuses_what_is_no_recipe(arguments):
    done = run_sh(*arguments, ROWS="rows")
    assert done.returncode == 2 and "RECIPE [GPUS_PER_NODE [NODES]] [KEY=VALUE ...]" in done.stderr


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ((), ("8", "1")),
        (("2",), ("2", "1")),
        (("2", "4", "trainer.save_freq=1", "+variant=qwen3_vl_4b"), ("2", "4")),
    ],
)
def test_run_sh_gives_each_command_its_arguments(recipe, arguments, size, tmp_path):
    command = tmp_path / "verl-stvg"
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)
    done = run_sh(recipe, *arguments, ROWS="rows", PATH=f"{tmp_path}:/usr/bin:/bin", HOME="/mine", RAY_ADDRESS="auto")
    assert done.returncode == 0, done.stderr
    cluster, overrides = size[1] != "1", arguments[2:]
    frames = "/mine/.cache/verl_stvg/frames"
    train = [
        *("train", "--recipe", recipe, "--run-dir", f"runs/{recipe}"),
        *(
            "data.train_files=rows/train.parquet",
            "data.val_files=rows/val.parquet",
            f"data.video_cache.folder={frames}",
        ),
        *(f"trainer.n_gpus_per_node={size[0]}", f"trainer.nnodes={size[1]}"),
        *(
            f"trainer.default_local_dir=runs/{recipe}/checkpoints",
            f"trainer.validation_data_dir=runs/{recipe}/validation",
        ),
        *overrides,
    ]
    rows, on_ray = "rows/train.parquet rows/val.parquet", " --ray" * cluster
    assert [line for line in done.stdout.splitlines() if line and not line.startswith("[")] == [
        "doctor",
        f"check {rows} --no-decode{on_ray}",
        f"cache build {rows} --cache {frames}{' --patch 16' * cluster}{on_ray}",
        " ".join(train),
    ]


def test_several_nodes_need_the_address_of_a_cluster():
    done = run_sh("stvg_r1", "8", "4", ROWS="rows", CACHE="frames")
    assert done.returncode != 0 and "4 nodes need a running Ray cluster" in done.stderr


@pytest.mark.slow
def test_the_checks_of_run_sh_pass_on_rows(rows, tmp_path):
    done = run_sh("stvg_r1", "1", ROWS=str(rows), CACHE=str(tmp_path / "frames"), STAGES="check cache")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "nothing found that would spoil training" in done.stdout

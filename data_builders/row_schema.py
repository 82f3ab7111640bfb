"""The columns of a file of rows that `verl_stvg.data_builders.build` writes."""

import pyarrow as pa

ROW_SCHEMA = pa.schema(
    {
        "data_source": pa.string(),
        "prompt": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
        "videos": pa.list_(
            pa.struct(
                {
                    "video": pa.string(),
                    **dict.fromkeys(("rule", "tracks", "marker_style"), pa.string()),
                    **dict.fromkeys(("fps", "video_start", "video_end"), pa.float64()),
                    **dict.fromkeys(
                        ("min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels"), pa.int64()
                    ),
                }
            )
        ),
        "ability": pa.string(),
        "reward_model": pa.struct(
            {
                "style": pa.string(),
                "ground_truth": pa.struct(
                    {
                        "uid": pa.string(),
                        "duration": pa.float64(),
                        "start": pa.float64(),
                        "end": pa.float64(),
                        "intervals": pa.list_(pa.list_(pa.float64())),
                        "object_id": pa.int64(),
                        "object_ids": pa.list_(pa.int64()),
                        "visible": pa.list_(pa.list_(pa.float64())),
                        "first_frame": pa.int64(),
                        "boxes": pa.list_(pa.list_(pa.float32())),
                        "picture": pa.list_(pa.float64()),
                        "answer": pa.string(),
                        "option": pa.string(),
                    }
                ),
            }
        ),
        "extra_info": pa.struct(
            {
                **dict.fromkeys(("uid", "dataset", "split", "template", "annotation"), pa.string()),
                "index": pa.int64(),
                **dict.fromkeys(("query", "sentence"), pa.string()),
                "options": pa.list_(pa.string()),
                "duration": pa.float64(),
                "num_frames": pa.int64(),
                "source_fps": pa.float64(),
                **dict.fromkeys(("width", "height"), pa.int64()),
                "constant_rate": pa.bool_(),
                "first_frame_of": pa.string(),
                "frame_times": pa.list_(pa.float64()),
                "file_end": pa.float64(),
                "content": pa.string(),
                "visual_tokens": pa.int64(),
                "annotated": pa.string(),
            }
        ),
    }
)

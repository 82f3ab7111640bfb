"""The order of pictures whose decoder says no packet of them, and the walk over a film without a unit of time."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from verl_stvg.video import packet_order, packets
from verl_stvg.video.film import TimelessVideo


def film(monkeypatch, module, stream, container=None):
    """Let a module see this film in every file."""

    @contextmanager
    def opened(path, file=None):
        yield container, stream

    monkeypatch.setattr(module, "opened", opened)


def test_pictures_of_no_packet_are_left_out(monkeypatch):
    numbers = iter((None, 0, None, 1, 2))
    decoded = SimpleNamespace(thread_count=0, decode=lambda packet: [SimpleNamespace(pts=next(numbers))])
    film(monkeypatch, packet_order, SimpleNamespace(codec_context=decoded))
    many = [(number, SimpleNamespace(pts=None, dts=None)) for number in range(4)]
    monkeypatch.setattr(packet_order, "packets", lambda container, stream: iter(many))
    assert packet_order.given_by_decoder("a.mp4", None) == ([0, 1, 2], [])


def test_a_film_without_a_unit_of_time_has_no_times(monkeypatch):
    form = SimpleNamespace(name="odd", flags=0)
    film(monkeypatch, packets, SimpleNamespace(time_base=None), SimpleNamespace(format=form))
    with pytest.raises(TimelessVideo, match=r"a\.odd: holds no times, only pictures \(odd\)"):
        packets.walk("a.odd", file=object())

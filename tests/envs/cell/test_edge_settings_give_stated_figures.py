"""The named settings hold the papers' numbers, and give the one goodput that needs no scheduler."""

from __future__ import annotations

import numpy as np
import pytest

from draftgym.decoding.errors import DraftgymError
from draftgym.envs.cell.settings import EDGE_SETTINGS, EdgeSetting, edge_setting
from draftgym.envs.cell.uploads import upload_seconds
from draftgym.envs.radio.channel import FadingChannel

LLAMA_ACCEPTANCE = np.array([0.8582, 0.7390, 0.7393, 0.7126])
"""2606.04581, Table I: MBPP+, GSM8K, MT-Bench, SQuAD."""


def test_the_papers_numbers() -> None:
    bits = {name: setting.payload.bits_per_token for name, setting in EDGE_SETTINGS.items()}
    assert bits == {
        "multispin-llama2": 31_744,
        "multispin-qwen3.5": 34_816,
        "modes-qwen2.5": 34,
        "modes-r1-qwen": 34,
    }
    for name, setting in EDGE_SETTINGS.items():
        assert setting.users == 20 and setting.radio.band.hertz == 10e6
        assert setting.radio.band.noise_grows == name.startswith("modes")
        assert setting.longest_draft == (20 if name.startswith("modes") else 25)


def point_to_point_goodput(setting: EdgeSetting, acceptance: np.ndarray, draws: int) -> float:
    """One device with the whole band, the best length of each round, mean over rounds."""
    rng = np.random.default_rng(0)
    channel = FadingChannel(setting.radio, (draws, 1))
    channel.reset(rng)
    alpha = rng.choice(acceptance, (draws, 1))
    lengths = np.arange(1, setting.longest_draft + 1)
    rate = setting.radio.band.rate(channel.snr, 1.0)
    each = setting.device.draw(rng, (draws, 1))
    draft, upload = lengths * each, upload_seconds(setting.payload.draft_bits(lengths), rate)
    alone = setting.server.seconds(np.zeros(1, int), np.zeros(1, int), np.ones(1, bool))
    tokens = (1 - alpha ** (lengths + 1)) / (1 - alpha)
    return float((tokens / (draft + upload + alone)).max(1).mean())


def test_one_user_alone_is_as_fast_as_multispin_says() -> None:
    stated = 145 / 4.6  # Fig. 6: about 145 tokens/s, about 4.6 times that of one user
    goodput = point_to_point_goodput(edge_setting("multispin-llama2"), LLAMA_ACCEPTANCE, 4000)
    assert goodput == pytest.approx(stated, rel=0.05)


def test_an_ordinary_power_would_make_communication_free() -> None:
    """Why the power of Multi-SPIN's radio is a guess: see `multispin_radio`."""
    radio = edge_setting("multispin-llama2").radio
    loud = 10 * np.log10(0.1 * radio.gains.draw(np.random.default_rng(0), (9,)) / radio.noise)
    assert loud.min() > 80


def test_the_radio_of_mode_selection_makes_distributions_dear_for_distant_users() -> None:
    setting = edge_setting("modes-qwen2.5")
    gains = np.array([1e-10, 3.5777e-13])  # 100 m and 500 m
    rates = setting.radio.band.rate(setting.radio.snr(gains), 1 / 20)
    seconds = upload_seconds(setting.payload.correction_bits, rates)
    assert seconds == pytest.approx([0.00951, 0.1073], rel=1e-3)


def test_unknown_settings_are_refused_with_a_hint() -> None:
    with pytest.raises(DraftgymError) as caught:
        edge_setting("multispin-lama2")
    assert "did you mean 'multispin-llama2'" in caught.value.remedy

"""Speech enhancement by a mask: training pairs are made on the fly from clean speech, and finished runs mend files.

Axes: b sounds   n samples
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.data.audio_augment import Degrade
from mmlm.data.base import Draws
from mmlm.data.crops import Pairs, WavePairs
from mmlm.data.speech import Utterance
from mmlm.objectives.audio import si_sdr
from mmlm.objectives.base import Losses
from mmlm.sound import Sound
from mmlm.tasks.base import GIVEN
from mmlm.tasks.config import EnhancementTaskConfig
from mmlm.tasks.degraded import GATE, Enhanced, MendsSpeech
from mmlm.tasks.mask_network import MaskNetwork, compressed_spectrum_losses
from mmlm.tasks.spectral_gate import spectral_gate
from mmlm.weights import copy_tensors, read_tensors, write_tensors

WEIGHTS = "model.safetensors"
WINDOW_SECONDS = 10.0
BIN_DB = 5


class MaskLearner(nn.Module):
    """The network under its losses."""

    def __init__(self, model: MaskNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: WavePairs) -> Losses:
        """Sums over the sounds, and their number."""
        config = self.model.config
        return compressed_spectrum_losses(self.model(batch.given_bn), batch.true_bn, config.window, config.hop)

    def loss_weights(self, batch: WavePairs) -> dict[str, float]:
        """Sounds."""
        return dict.fromkeys(("magnitude", "complex"), float(len(batch.true_bn)))


class EnhancementTask(MendsSpeech):
    """Trains a mask network on degraded speech."""

    vocabulary: Mapping[str, int] = {}
    trains: Collection[str] = ()
    over = "SI-SDR of what was given, dB"
    metrics = ("si_sdr", "si_sdr_gain")
    window_seconds = WINDOW_SECONDS

    def __init__(self, config: EnhancementTaskConfig, tokenizers: Mapping[str, Any]) -> None:
        super().__init__(config.degrade, config.degrade_test, config.sample_rate_hz)
        self.config, self.tokenizers = config, tokenizers

    def learner(self, seed: int) -> MaskLearner:
        """A fresh network under its losses."""
        torch.manual_seed(seed)
        self.model = MaskNetwork(self.config.network)
        return MaskLearner(self.model)

    def samples(self, records: Draws) -> Pairs:
        """Pieces of speech, clean and degraded."""
        config = self.config
        size = round(config.seconds * config.sample_rate_hz)
        return Pairs(records, Degrade(config.degrade), rate_hz=config.sample_rate_hz, size=size, hop=config.network.hop)

    def save(self, folder: Path) -> None:
        """model.safetensors."""
        write_tensors(folder / WEIGHTS, self.model.state_dict())

    def load(self, folder: Path) -> MaskNetwork:
        """The network of a finished run."""
        self.model = MaskNetwork(self.config.network)
        copy_tensors(self.model.state_dict(), read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
        return self.model.eval()

    @torch.no_grad()
    def enhance(self, model: MaskNetwork, sounds: Sequence[Sound]) -> list[Sound]:
        """Each sound, at `rate_hz`, as it should be, with as many samples."""
        found = []
        for sound in sounds:
            wave_n: Tensor = model(torch.from_numpy(sound.wave_n)[None].to(model.device))[0]
            found.append(Sound(wave_n.float().cpu().numpy(), sound.rate_hz))
        return found

    def predict(self, model: MaskNetwork, records: Sequence[Utterance]) -> list[Enhanced]:
        """Each record degraded and mended."""
        pairs = [self.pair(record) for record in records]
        made = self.enhance(model, [given for _, given in pairs])
        return [Enhanced(true, given, one) for (true, given), one in zip(pairs, made, strict=True)]

    def score(self, outputs: Sequence[Enhanced], records: Sequence[Utterance]) -> dict[str, float]:
        """si_sdr: mean in dB.   si_sdr_gain: by how much that is more than that of what was given."""
        made, given = ([_si_sdr(getattr(one, name), one.true) for one in outputs] for name in ("made", "given"))
        return {"si_sdr": float(np.mean(made)), "si_sdr_gain": float(np.mean(np.subtract(made, given)))}

    def baselines(self, records: Sequence[Utterance]) -> dict[str, dict[str, float]]:
        """What was given, and the spectral gate."""
        pairs = [self.pair(record) for record in records]
        given = float(np.mean([_si_sdr(sound, true) for true, sound in pairs]))
        gated = float(np.mean([_si_sdr(spectral_gate(sound), true) for true, sound in pairs]))
        return {GIVEN: {"si_sdr": given, "si_sdr_gain": 0.0}, GATE: {"si_sdr": gated, "si_sdr_gain": gated - given}}

    def curves(self, outputs: Sequence[Enhanced], records: Sequence[Utterance]) -> dict[str, list[tuple[float, float]]]:
        """SI-SDR over that of what was given, in steps of 5 dB."""
        bins: dict[int, list[float]] = {}
        for one in outputs:
            bins.setdefault(round(_si_sdr(one.given, one.true) / BIN_DB), []).append(_si_sdr(one.made, one.true))
        return {"SI-SDR, dB": [(float(BIN_DB * place), float(np.mean(bins[place]))) for place in sorted(bins)]}


def _si_sdr(sound: Sound, true: Sound) -> float:
    """In dB, within -60 and 60: silence has none, and a perfect copy no end."""
    pair = [torch.from_numpy(each.wave_n).double() for each in (sound, true)]
    return float(si_sdr(pair[0], pair[1]).nan_to_num(-60.0).clamp(-60, 60))

import torch

from pretrain.engine.loss_scale import LossScale


def test_the_rule_is_torchs():
    draws = torch.rand(400, generator=torch.Generator().manual_seed(3))
    ours = LossScale(1024.0, growth_steps=5)
    scale, tracker = torch.tensor(1024.0), torch.tensor(0, dtype=torch.int32)
    seen = set()
    for finite in (draws > 0.15).tolist():
        ours.update(finite)
        found_inf = torch.tensor(0.0 if finite else 1.0)
        torch._amp_update_scale_(scale, tracker, found_inf, 2.0, 0.5, 5)
        assert ours.scale == float(scale)
        assert ours.good_steps == int(tracker)
        seen.add(ours.scale)
    assert len(seen) > 10


def test_scales_stay_powers_of_two_apart_so_that_unscaling_is_exact():
    scale = LossScale(65536.0, growth_steps=1)
    for applied in (True, True, False, True):
        scale.update(applied)
    assert scale.scale == 65536.0 * 4

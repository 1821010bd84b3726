"""The networks: receives a model's config, hands on a `torch.nn.Module`.

`variants` answers every question about shape and `cost` about cost, without torch; `swin` is the
network, put together from `layers`, `mixers` and `windows`; `build` makes one, initialised as the
recipe; `transfer` starts one from another's weights.
"""

"""Makes shard sets out of what people have.

`build` packs image folders and ImageNet archives into WebDataset shards with indices and a
manifest, `synthetic` paints a small labelled set to try everything with. Hands on a directory that
`pretrain.data` reads.
"""

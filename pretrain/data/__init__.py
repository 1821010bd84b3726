"""Reads training and evaluation images from shards, in an order that is a pure function.

Receives a directory of WebDataset shards with its manifest, and the ``data`` section of the config.
`manifest` says what there is, `order` which sample comes when, `shards` fetches its bytes, `decode`
and `crop` turn them into pixels, `loader` does so in worker processes. Hands on `loader.Batch`:
uint8 images with labels, sample ids and seeds.
"""

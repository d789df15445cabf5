"""Data recipes: one file per data set, from raw files to webdataset shards with a card.

A recipe module has two functions. ``card()`` says what is expected (source, licence, counts)
without reading anything; ``samples(split, *, limit)`` yields ``ShardRecord``s and reads lazily.
``demo.py`` lists the recipes of the demo and ``write.py`` writes any of them. Everything is a pure
function of the installed packages' bytes: no clock, no global random state, so writing twice gives
the same shards.

Here may be imported: ``vltrain.data.writer``, ``vltrain.data.layout``, ``vltrain.batch``,
``vltrain.errors``, and (only here) ``datasets``. The raw data come from the ``demo`` extra;
nothing is downloaded.
"""

"""Data sets: pictures in any number become latents in shards, by several processes, and the work can be interrupted.

A data set is a folder. Its shards are the truth: each is one file, written whole or not at all, that says of every row
which picture it is of. Beside them lie

- ``dataset.json``, the key of the settings and the format of the shards, of which a data set has one each;
- ``template.latent.pt``, a latent file with zeros in the place of a latent: all that decoding needs;
- ``manifest.jsonl``, a line for each picture: its name, its identity, the shard and the row, or why there is none.

The identity of a latent is the SHA-256 over the bytes of the picture and the key of the settings. What has an identity
that some shard holds is done, whatever it is called and wherever it stands among the others.
"""

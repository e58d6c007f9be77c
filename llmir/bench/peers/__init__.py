"""Other engines on the same weights and token counts, alternating with llmir: `llmir bench peers`.

`base` holds the contract of a peer, one file per peer beside it; `registry` selects.
"""

"""llmir's server and others on the same load, alternating: `llmir bench peers-serve`.

`base` holds the contract of a side, `llama_server`, `vllm_server` and `llmir_server` the sides,
`scenarios` what is asked of them, `rounds` the alternation.
"""

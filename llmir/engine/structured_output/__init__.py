"""Outputs held to a JSON schema, a regex, a grammar or a list of choices, through llguidance.

StructuredOutputsParams ─ grammar.py ─ text of a grammar ─ GrammarCompiler ─ Constraint
                                                                │               │ a sequence
        Vocabulary (bytes of every token) ──────────────────────┘               ▼
                                                 MaskFiller: bits of the tokens that may follow
"""

from llmir.engine.structured_output.compiler import Grammar, GrammarCompiler
from llmir.engine.structured_output.constraint import Constraint
from llmir.engine.structured_output.masks import MaskFiller
from llmir.engine.structured_output.params import StructuredOutputsParams

__all__ = ["Constraint", "Grammar", "GrammarCompiler", "MaskFiller", "StructuredOutputsParams"]

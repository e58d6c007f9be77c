"""Calls of tools: what a request may have the model call, and finding the calls in its output.

ChatRequest ─ use.py ─ ToolUse ─ the template's tools, or prompt.py's
                          │      a grammar (schema.py), where a call is required
                          ▼
       output ─ parser.py ─ events ─ writer.py ─ content and tool_calls
"""

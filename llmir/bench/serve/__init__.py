"""A client that loads an OpenAI-compatible server and measures it: `llmir bench serve`.

datasets → the requests; arrivals → when each is sent; load → sends them, through client and
http_stream; metrics → what came of it; report and plot → how that is shown.
"""

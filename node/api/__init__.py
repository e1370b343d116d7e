"""The local side over HTTP: answers for AI tools, pages for the owner, figures for monitors.

    serving     how it starts: start here; assembling what it is made of
    server      accepts: listening where, connection one client under deadlines
    guard       decides who may ask what, by rules; refusals how that is said; token and
                entry who it is
    openai, anthropic, relay
                the shapes of clients, each an endpoint that reads what is asked, and what is passed
                on to an upstream (heard for the corpus); asgi, errors, sse what they have in common
    completing  one request from its model's name to its last byte; stopping ends a text
    choosing    which leaf answers, and what answers when routing is in trouble
    ports       what a back end is; backends the built-in one, llama.cpp's and vLLM's servers
    recording   what becomes of an exchange; talks which session it goes on with
    otlp, litellm_log
                other ways into the corpus: otlp_read, genai, ingest what they share; feedback_route
    counts      what happened, for `status`; spread, metrics the same for Prometheus
    pages       the dashboard

Nothing here loads a model: the built-in back end computes in a child process.
"""

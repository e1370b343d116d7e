"""The local side over HTTP: answers for AI tools, pages for the owner, figures for monitors.

    serving     what is wired: start here. server accepts, guard decides who may ask what, token
    openai, anthropic, relay
                the shapes of clients; completing one request from its model's name to its last byte
    choosing    which leaf answers, and what answers when routing is in trouble
    ports       what a back end is; backends the built-in one, llama.cpp's and vLLM's servers
    recording   what becomes of an exchange; feedback, otlp, litellm_log other ways into the corpus
    counts      what happened, for `status`; metrics the same for Prometheus
    pages       the dashboard

Nothing here loads a model: the built-in back end computes in a child process.
"""

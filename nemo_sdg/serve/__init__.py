"""`nemo-sdg serve`: a policy and a reward model behind the OpenAI chat-completions API, over the engine's scheduler.

    client --HTTP--> http.py --orders--> desk.py --> loop.py on rank 0 --broadcast--> loop.py on every rank
                        ^                                  |                                 |
                        '----------- tokens, texts --------'                        Engine.submit, step

Rank 0 runs the HTTP server in a thread; the ranks work in their main threads. `launch.py` is the verb.
"""

"""The Docker Engine API on a socket: what ``bulle serve`` is.

Start reading at ``routes`` (which path is answered by what), ``server`` (the sockets), ``connection`` (one client), ``service`` (what all requests
share). No verb is carried out here: every handler asks the engine, and says its answer in Docker's words. Docker Engine API v1.24 to v1.51.
"""

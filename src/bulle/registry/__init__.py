"""Images on their way in and out: transports behind one interface, the registry client, and the writers of archives.

Nothing here knows the store: the engine takes :class:`~bulle.registry.transport.RemoteImage` values from a source and gives them to it. Start reading
at ``sources`` (the table of transports), ``transport`` (the interface) and ``client`` (HTTP).
"""

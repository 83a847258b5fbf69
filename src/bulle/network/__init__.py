"""Ways in and out of containers: bridges, addresses, ports and names. One process per home, the *keeper*, makes and holds all of it.

What the kernel ends by itself (a veth with its network namespace) is left to it; the rest lives in one nftables table of ours, in sockets of the
keeper, and in bridges that go when they are not needed. Others speak to the keeper by :mod:`bulle.network.protocol`.
"""

"""The fleet: verbs that run on another machine, through the system's ssh.

There is no protocol of our own: ``hosts`` says which machine is meant, ``transport`` runs the other machine's ``bulle`` with the same words by
``ssh``, ``carrying`` takes files there and back for as long as a verb needs them. What the words of a verb mean is the command line's business.
"""

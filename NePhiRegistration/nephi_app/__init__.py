"""The registration panel in a browser: ``nephi app``.

``serve`` is the command. ``launcher`` is the only part that the network reaches: it checks who asks and passes requests
on to one process a session (``processes``). ``session`` is that process: ``front`` (the page and its dialog, which need
no VTK) and, later, ``views`` (the only part that knows trame-slicer) and ``controller`` (what happens). Registration,
results and how they are shown are NePhiRegistrationLib's.
"""

"""A fleet on paper: what etcd, its leases and a thousand gateways do when more and more is asked of them.

No machine here has a thousand gateways, or a rack to lose. So the parts were measured one by one (three etcd
members, over the JSON gateway that a gateway of ours speaks), and a simulation puts them together: it knows who
waits for whom, and what each step takes. It tells when something begins to go wrong and why. It does not tell
the milliseconds of another network.

world.py     what happens when: a clock that jumps from one event to the next
engine.py    etcd: one queue, in which everybody's steps take what they were measured to take
fleet.py     gateways with their leases and disks; what is lost, and how disks find new homes
found.py     what a run is asked for, and docs/scale.md's tables
measure.py   measures etcd on this machine: python -m tests.sim.measure
__main__.py  runs the simulations and writes docs/scale.md and its picture: python -m tests.sim
"""

"""Refuse whatever would change the disk.

The client is told that the export is read-only, and a WRITE, WRITE_ZEROES or TRIM that it sends all the same
gets EPERM. Like nbdkit's `-r`. If others may write to the disk, its dirty bitmaps can change while they are
read: see `contexts.stable-only` of `[[export]]`.

    policies = [ { use = "readonly" } ]
"""

from gateway.policy import Flag, Policy, View


class Readonly(Policy):
    """`use = "readonly"`."""

    def describe(self, view: View) -> View:
        """Give the export as read-only."""
        return view.having(Flag.READ_ONLY)

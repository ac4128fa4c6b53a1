"""Refuse whatever would change the disk.

The client is told that the export is read-only, and a WRITE, WRITE_ZEROES or TRIM gets EPERM all the same. As
nbdkit's `-r`. Dirty bitmaps of a disk that others may write can change while they are read; see
`contexts.stable-only` of `[[export]]`.

    policies = [ { use = "readonly" } ]
"""

from gateway.policy import Flag, Policy, View


class Readonly(Policy):
    """`use = "readonly"`."""

    def describe(self, view: View) -> View:
        """Give the export as read-only."""
        return view.having(Flag.READ_ONLY)

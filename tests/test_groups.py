"""Groups of packages: which of their files an initrd may be made of."""

from __future__ import annotations

import pytest

from buildlib.distros.debian.matters import Words

HOOK = r"""
# curl is no word of it: a comment
[ "$1" = prereqs ] && exit 0
for name in rsync ntfs-3g; do
    command -v "$name" > /dev/null && copy_exec "$(command -v "$name")"
done
if [ -x /sbin/fsck.xfs ]; then copy_exec /sbin/fsck.xfs; fi
for rules in /etc/app.d/*.rules; do cp "$rules" "${DESTDIR}/lib/${version}"; done
cp -pPr /etc/ld.so.conf* "$DESTDIR"/etc/
find /usr/lib -name 'libgcc_s.so.[1-9]'
cp -r /usr/share/keyrings "$DESTDIR"
copy_exec /usr/bin/dash /usr/bin
"""

MAY = {
    "a program that it looks for": "usr/bin/rsync",
    "one that it names by its path": "usr/sbin/fsck.xfs",
    "a file in a folder that it reads all of": "etc/app.d/90-more.rules",
    "one that begins as it asks": "etc/ld.so.conf.d/more.conf",
    "one of a name that begins as it asks": "usr/lib/x86_64-linux-gnu/libgcc_s.so.1",
    "anything in a folder that it copies": "usr/share/keyrings/more.gpg",
    "a kernel module": "usr/lib/modules/6.1.0/updates/more.ko",
    "firmware": "usr/lib/firmware/more.bin",
    "a hook": "usr/share/initramfs-tools/hooks/more",
    "settings of modules": "etc/modprobe.d/more.conf",
}

CANT = {
    "a program of another name": "usr/bin/htop",
    "one that only a comment names": "usr/bin/curl",
    "one of a shell variable's name": "usr/bin/version",
    "a library beside those that it asks for": "usr/lib/x86_64-linux-gnu/libmore.so.1",
}


@pytest.mark.parametrize("case", MAY)
def test_what_may_be_for_an_initrd(case: str) -> None:
    assert Words.of([HOOK]).reason(MAY[case])


@pytest.mark.parametrize("case", CANT)
def test_what_cannot_be(case: str) -> None:
    assert Words.of([HOOK]).reason(CANT[case]) == ""

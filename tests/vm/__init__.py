"""Real boots for the tests: NFS and HTTP servers and QEMU machines in namespaces of their own.

    with Lab(tmp_path) as lab:
        root = lab.export(tree, "/root", writable=False)
        append = f"boot=nfs root=/dev/nfs nfsroot={root},tcp,v3 ro ip=dhcp netboot.volatile"
        with lab.boot(kernel=tree / "vmlinuz", initrd=tree / "initrd.img", append=append) as vm:
            vm.login()
            assert vm.run("cat /etc/machine-id")
            vm.off()

Independent of pytest; the caller decides where logs are kept and what a failure means.
"""

from .lab import Lab
from .machine import Machine, MachineError
from .servers import ServerError

__all__ = ["Lab", "Machine", "MachineError", "ServerError"]

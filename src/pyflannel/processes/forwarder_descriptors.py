"""The descriptors that the daemon opens for a forwarder, which has no right to open them itself."""

import errno
import os
import socket
import struct
from contextlib import suppress
from fcntl import ioctl
from socket import if_nametoindex

from pyflannel.errors import TargetError, in_words


def open_listener(path: str) -> socket.socket:
    """Return a Unix socket that is bound at `path`, mode 0600; the socket of a forwarder that has exited is
    replaced.

    Only the forwarder listens on the socket, so no client can connect earlier.

    Raises:
        TargetError: a running forwarder answers at `path`.
        OSError: the path cannot be used; EISDIR if it is a directory.
    """
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # a forwarder runs, but its queue of connections is full
            holder = "another forwarder"
        else:
            holder = f"another forwarder, pid {pid_of_peer(probe)},"
    raise TargetError(
        f"{holder} answers at {path}",
        hint="Stop the running forwarder first, or use another run directory for this flanneld.",
    )


def pid_of_peer(connection: socket.socket) -> int:
    """Return the process ID at the other end of a Unix socket."""
    form = struct.Struct("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    return int(form.unpack(credentials)[0])


_BUFFER_BYTES = 4 << 20

_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_WANT = 1
"""A constant of linux/in.h, which the socket module does not define."""

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
"""asm-generic/socket.h, which allows values above the limits of the system, with CAP_NET_ADMIN."""


def open_underlay_socket(address: str, port: int) -> socket.socket:
    """Return the bound socket of the tunnel.

    The kernel fragments a datagram that is longer than the known MTU of the path, and never refuses it.
    IP_PMTUDISC_WANT, the kernel's default, has this effect for any value of the host's ip_no_pmtu_disc.

    Raises:
        OSError: EADDRINUSE if another program uses the port. EADDRNOTAVAIL if the host does not have the
            address.
    """
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_WANT)
        _enlarge(udp, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
        _enlarge(udp, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        udp.bind((address, port))
    except OSError as error:
        udp.close()
        raise OSError(error.errno, f"UDP {address}:{port}: {in_words(error)}") from None
    return udp


def _enlarge(udp: socket.socket, forced: int, plain: int) -> None:
    try:
        udp.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_BYTES)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_BYTES)


_DEVICE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
"""linux/if_tun.h. The flags select a device of layer 3, whose reads and writes are only packets, or
packets after a header about segmentation."""

_IFREQ = struct.Struct("16sH22x")
_NUMBER = struct.Struct("=i")
_HEADER_BYTES = 10
"""linux/virtio_net.h, struct virtio_net_hdr."""


def attach_device(link: str) -> int:
    """Return a descriptor that is attached to a TUN device. The call never creates a device.

    Raises:
        OSError: ENODEV if the device does not exist, EBUSY if another program uses it, or the error of
            opening /dev/net/tun or attaching; the text names the object.
    """
    index = _index(link)
    try:
        descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, in_words(error)) from None
    try:
        _attach(descriptor, link)
        # If the device was deleted in between, the call has created it again. The new device is deleted when
        # this descriptor is closed.
        if _index(link) != index:
            raise OSError(errno.ENODEV, f"{link} was replaced during the attachment")
    except OSError:
        os.close(descriptor)
        raise
    _accept_own_source(link)
    return descriptor


def _attach(descriptor: int, link: str) -> None:
    """Attach to the device. The kernel creates a missing device with the same system call."""
    flags = _IFF_TUN | _IFF_NO_PI
    try:
        try:
            ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(link.encode(), flags | _IFF_VNET_HDR))
            # An earlier owner of the device may have changed these settings.
            ioctl(descriptor, _TUNSETVNETHDRSZ, _NUMBER.pack(_HEADER_BYTES))
            ioctl(descriptor, _TUNSETOFFLOAD, 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(link.encode(), flags))
    except OSError as error:
        raise OSError(error.errno, f"device {link}: {in_words(error)}") from None


def _accept_own_source(link: str) -> None:
    """Let the host accept packets from the device with its own address, which are the forwarder's ICMP
    errors.

    No other host can send packets with this source, because packets from the underlay are checked first. If
    the setting is read-only, the ICMP errors are lost, as with the original.
    """
    with suppress(OSError), open(f"/proc/sys/net/ipv4/conf/{link}/accept_local", "w") as file:
        file.write("1")


def _index(link: str) -> int:
    try:
        return if_nametoindex(link)
    except OSError:
        raise OSError(errno.ENODEV, f"there is no device {link}") from None

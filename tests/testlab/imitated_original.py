"""Imitations of an original flannel, which is not on this machine.

The imitations create the objects that the recordings in tests/golden show, and leave the same remains.
"""

UDP = """
import fcntl, os, select, socket, struct, subprocess, sys

own, address, subnet, peer = sys.argv[1:]
tun = os.open("/dev/net/tun", os.O_RDWR)
request = fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"flannel%d", 0x1 | 0x1000))
name = request[:16].rstrip(b"\\0").decode()
print("device", name, flush=True)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind((own, 8285))
commands = f"address add {address} dev {name}\\nlink set {name} mtu 1472 up\\n"
subprocess.run(["ip", "-batch", "-"], input=commands.encode(), check=True)
prefix = socket.inet_aton(subnet.partition("/")[0])[:3]
print("running", flush=True)
while True:
    ready, _, _ = select.select([tun, udp], [], [])
    if tun in ready and (packet := os.read(tun, 2000))[16:19] == prefix:
        udp.sendto(packet, (peer, 8285))
    if udp in ready and len(packet := udp.recv(2000)) >= 20:
        os.write(tun, packet)
"""
"""Release 0.6 with one peer: own address, address of the device, subnet and address of the peer."""

VXLAN = """
import signal, subprocess, sys

own, address, mac, subnet, peer, peer_mac = sys.argv[1:]
base = subnet.partition("/")[0]
subprocess.run(["ip", "link", "delete", "flannel.1"], stderr=subprocess.DEVNULL)
commands = f'''
link add flannel.1 type vxlan id 1 dev eth0 local {own} dstport 8472 nolearning
link set flannel.1 address {mac} up
address add {address} dev flannel.1
neigh add {base} lladdr {peer_mac} dev flannel.1 nud permanent
route add {subnet} via {base} dev flannel.1 onlink
'''
subprocess.run(["ip", "-batch", "-"], input=commands.encode(), check=True)
entry = f"fdb add {peer_mac} dev flannel.1 dst {peer} self permanent"
subprocess.run(["bridge", *entry.split()], check=True)
print("running", flush=True)
signal.sigwait([signal.SIGTERM])
"""
"""Release 0.20 with one peer. All objects of the original remain after its end.

Arguments: own address; address and MAC address of the device; subnet, address and MAC address of the peer.
"""

"""A server for tests: TCP 80 and UDP 53, IPv4 and IPv6; every line or datagram is answered with its name and the client's address."""

import selectors
import socket
import sys

name = sys.argv[1]
selector = selectors.DefaultSelector()
tcp = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True, backlog=100)
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
udp.bind(("::", 53))
for listener in (tcp, udp):
    selector.register(listener, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        s = key.fileobj
        if s is tcp:
            selector.register(tcp.accept()[0], selectors.EVENT_READ)
        elif s is udp:
            data, client = udp.recvfrom(2000)
            udp.sendto(f"{name} {client[0]}\n".encode(), client)
        else:
            try:
                data = s.recv(2000)
                if data:
                    s.sendall(f"{name} {s.getpeername()[0]}\n".encode())
                    continue
            except OSError:
                pass
            selector.unregister(s)
            s.close()

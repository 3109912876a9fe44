//! Addresses where no server answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// An address that refuses each connection: bound, so that nobody else gets it, and never listening.
#[derive(Debug)]
pub struct Refused {
    pub address: SocketAddr,
    _socket: Socket,
}

/// Takes a free port of loopback and refuses connections to it as long as the value lives.
pub fn refused() -> Refused {
    let socket = bound(Ipv4Addr::LOCALHOST);
    Refused {
        address: address(&socket),
        _socket: socket,
    }
}

/// An address whose connections never come about (T3): the one place of its backlog is taken, so that the
/// kernel drops further SYNs. It needs no privilege.
#[derive(Debug)]
pub struct BlackHole {
    pub address: SocketAddr,
    _listener: Socket,
    _occupant: std::net::TcpStream,
}

/// Takes a free port of loopback and swallows connections to it as long as the value lives.
pub fn black_hole() -> BlackHole {
    black_hole_at(Ipv4Addr::LOCALHOST)
}

/// The same on the loopback of IPv6.
pub fn black_hole_v6() -> BlackHole {
    black_hole_at(Ipv6Addr::LOCALHOST)
}

fn black_hole_at(host: impl Into<IpAddr>) -> BlackHole {
    let listener = bound(host);
    listener.listen(0).expect("a bound socket listens");
    let address = address(&listener);
    let occupant = std::net::TcpStream::connect(address).expect("a backlog of 0 takes one");
    BlackHole {
        address,
        _listener: listener,
        _occupant: occupant,
    }
}

/// An address that takes connections and never says a word on them: the kernel answers, nobody accepts.
#[derive(Debug)]
pub struct Silent {
    pub address: SocketAddr,
    _listener: Socket,
}

/// Takes a free port of loopback and keeps silent on it as long as the value lives.
pub fn silent() -> Silent {
    let listener = bound(Ipv4Addr::LOCALHOST);
    listener.listen(1_024).expect("a bound socket listens");
    Silent {
        address: address(&listener),
        _listener: listener,
    }
}

fn bound(host: impl Into<IpAddr>) -> Socket {
    let any = SocketAddr::from((host.into(), 0));
    let socket = Socket::new(Domain::for_address(any), Type::STREAM, None);
    let socket = socket.expect("a socket can be had");
    socket.bind(&any.into()).expect("loopback has a free port");
    socket
}

fn address(socket: &Socket) -> SocketAddr {
    let address = socket.local_addr().expect("a bound socket has an address");
    address.as_socket().expect("and it is an IP one")
}

//! Addresses where no server answers.

use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// An address that refuses each connection: bound, so that nobody else gets it, and never listening.
#[derive(Debug)]
pub struct Refused {
    pub address: SocketAddr,
    _socket: Socket,
}

/// Takes a free port of loopback and refuses connections to it as long as the value lives.
pub fn refused() -> Refused {
    let socket = bound();
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
    let listener = bound();
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
    let listener = bound();
    listener.listen(1_024).expect("a bound socket listens");
    Silent {
        address: address(&listener),
        _listener: listener,
    }
}

fn bound() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket can be had");
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket.bind(&any.into()).expect("loopback has a free port");
    socket
}

fn address(socket: &Socket) -> SocketAddr {
    let address = socket.local_addr().expect("a bound socket has an address");
    address.as_socket().expect("and it is an IPv4 one")
}

//! The holes are what they say.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

use crate::rig::holes::{black_hole, black_hole_v6, refused, silent};

#[test]
fn each_hole_is_what_it_says() {
    crate::rig::clean::alone(async { each_hole() });
}

fn each_hole() {
    let wait = Duration::from_millis(300);
    let refused = refused();
    let error = TcpStream::connect(refused.address).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

    for hole in [black_hole(), black_hole_v6()] {
        let error = TcpStream::connect_timeout(&hole.address, wait).expect_err("SYNs are dropped");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    let silent = silent();
    let mut stream = TcpStream::connect(silent.address).expect("the kernel answers");
    stream
        .set_read_timeout(Some(wait))
        .expect("a timeout can be set");
    let error = stream.read(&mut [0]).expect_err("nobody speaks");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

//! Watches what a server says of its connection go by, where it is not encrypted: hyper keeps it to itself.

/// What was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The bytes are those of TLS: nothing will be seen in them.
    Encrypted,
    /// SETTINGS, with the stream limit if they change it.
    Settings { streams: Option<u32> },
    /// GOAWAY, with its error code.
    GoAway { code: u32 },
}

/// Walks from frame to frame over the bytes as they are read, in whatever pieces they come. It judges nothing:
/// hyper reads the same bytes and ends a connection that breaks the rules.
#[derive(Debug, Default)]
pub(super) struct Peek {
    state: State,
    /// The part of a frame's head or of an entry that has come so far.
    part: [u8; HEAD],
    have: usize,
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// Not a byte yet.
    #[default]
    Nothing,
    Blind,
    /// In a frame's head.
    Head,
    /// In a payload of no interest, with so many bytes to come.
    Skip(usize),
    Settings {
        left: usize,
        streams: Option<u32>,
    },
    GoAway {
        left: usize,
    },
}

/// Bytes of a frame's head, of an entry of SETTINGS, and of what GOAWAY has before its text.
const HEAD: usize = 9;
const ENTRY: usize = 6;
const GOAWAY: usize = 8;

impl Peek {
    /// Looks at bytes as they were read, and tells what they say.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut tell: impl FnMut(News)) {
        while let Some(&first) = bytes.first() {
            match &mut self.state {
                State::Blind => return,
                // A TLS record begins with its type, 20 to 23. As the length of a frame that would be more than
                // a server may send before we allowed it.
                State::Nothing if (20..=23).contains(&first) => {
                    self.state = State::Blind;
                    tell(News::Encrypted);
                }
                State::Nothing => self.state = State::Head,
                State::Skip(left) => {
                    let skipped = bytes.len().min(*left);
                    *left -= skipped;
                    bytes = &bytes[skipped..];
                    if *left == 0 {
                        self.state = State::Head;
                    }
                }
                State::Head => {
                    if self.fill(&mut bytes, HEAD) {
                        self.head(&mut tell);
                    }
                }
                State::Settings { left, .. } => {
                    let wanted = ENTRY.min(*left);
                    if self.fill(&mut bytes, wanted) {
                        self.entry(wanted, &mut tell);
                    }
                }
                State::GoAway { left } => {
                    let left = *left;
                    if self.fill(&mut bytes, GOAWAY) {
                        let [.., a, b, c, d] = self.part[..GOAWAY] else {
                            return;
                        };
                        let code = u32::from_be_bytes([a, b, c, d]);
                        self.skip(left - GOAWAY);
                        tell(News::GoAway { code });
                    }
                }
            }
        }
    }

    /// Takes bytes until there are `wanted` of them.
    fn fill(&mut self, bytes: &mut &[u8], wanted: usize) -> bool {
        let taken = bytes.len().min(wanted - self.have);
        self.part[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        *bytes = &bytes[taken..];
        if self.have < wanted {
            return false;
        }
        self.have = 0;
        true
    }

    fn skip(&mut self, left: usize) {
        self.state = match left {
            0 => State::Head,
            _ => State::Skip(left),
        };
    }

    /// A frame's head is complete.
    fn head(&mut self, tell: &mut impl FnMut(News)) {
        const SETTINGS: u8 = 4;
        const GO_AWAY: u8 = 7;
        const ACK: u8 = 1;
        let [a, b, c, kind, flags, ..] = self.part;
        let left = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            SETTINGS if flags & ACK == 0 && left == 0 => {
                self.state = State::Head;
                tell(News::Settings { streams: None });
            }
            SETTINGS if flags & ACK == 0 => {
                let streams = None;
                self.state = State::Settings { left, streams };
            }
            GO_AWAY if left >= GOAWAY => self.state = State::GoAway { left },
            _ => self.skip(left),
        }
    }

    /// An entry of SETTINGS, or the odd bytes after the last one, is complete.
    fn entry(&mut self, length: usize, tell: &mut impl FnMut(News)) {
        const MAX_CONCURRENT_STREAMS: u16 = 3;
        let State::Settings { left, streams } = &mut self.state else {
            return;
        };
        let [a, b, c, d, e, f, ..] = self.part;
        if length == ENTRY && u16::from_be_bytes([a, b]) == MAX_CONCURRENT_STREAMS {
            *streams = Some(u32::from_be_bytes([c, d, e, f]));
        }
        *left -= length;
        if *left == 0 {
            let streams = *streams;
            self.state = State::Head;
            tell(News::Settings { streams });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 0]);
        frame.extend_from_slice(payload);
        frame
    }

    /// What is seen when the bytes come in pieces of this size.
    fn seen(bytes: &[u8], piece: usize) -> Vec<News> {
        let (mut peek, mut news) = (Peek::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            peek.read(piece, |n| news.push(n));
        }
        news
    }

    #[test]
    fn settings_and_goaway_are_seen_among_other_frames_in_pieces_of_any_size() {
        let mut bytes = frame(4, 0, &[0, 4, 0, 1, 0, 0, 0, 3, 0, 0, 0, 7]);
        bytes.extend(frame(4, 1, &[]));
        // DATA with what looks like a GOAWAY inside, and one without anything.
        bytes.extend(frame(0, 0, &frame(7, 0, &[0; 8])));
        bytes.extend(frame(0, 1, &[]));
        bytes.extend(frame(4, 0, &[]));
        bytes.extend(frame(4, 0, &[0, 3, 255, 255, 255, 255]));
        bytes.extend(frame(
            7,
            0,
            &[127, 255, 255, 255, 0, 0, 0, 11, b'c', b'a', b'l', b'm'],
        ));
        bytes.extend(frame(7, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
        let expected = [
            News::Settings { streams: Some(7) },
            News::Settings { streams: None },
            News::Settings {
                streams: Some(u32::MAX),
            },
            News::GoAway { code: 11 },
            News::GoAway { code: 0 },
        ];
        for piece in 1..=bytes.len() {
            assert_eq!(seen(&bytes, piece), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn tls_is_told_from_http2_and_not_looked_into() {
        for kind in 20..=23 {
            let mut bytes = vec![kind, 3, 3, 0, 9];
            bytes.extend(frame(4, 0, &[]));
            for piece in 1..=bytes.len() {
                assert_eq!(seen(&bytes, piece), [News::Encrypted]);
            }
        }
    }

    #[test]
    fn nonsense_is_walked_over_without_panic() {
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..2_000 {
            let mut bytes: Vec<u8> = (0..rng.usize(..300)).map(|_| rng.u8(..)).collect();
            // Often something that begins like a frame of interest.
            if bytes.len() > 4 && rng.bool() {
                bytes[..2].fill(0);
                bytes[3] = if rng.bool() { 4 } else { 7 };
            }
            let whole = seen(&bytes, bytes.len().max(1));
            assert_eq!(seen(&bytes, 1), whole, "{bytes:?}");
        }
        // Lengths that no entry and no GOAWAY has.
        assert_eq!(
            seen(&frame(4, 0, &[0, 3, 0, 0, 0, 9, 1]), 2),
            [News::Settings { streams: Some(9) }]
        );
        let mut short = frame(7, 0, &[0; 7]);
        short.extend(frame(4, 0, &[]));
        assert_eq!(seen(&short, 3), [News::Settings { streams: None }]);
    }
}

//! Bytes read as choices. What is missing at the end reads as 0, so that every input means something.

/// What is left of the input.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    /// At most `most` bytes, as many as the next byte says.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.byte()).min(most).min(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    /// One of `these`.
    pub fn choice<T: Copy>(&mut self, these: &[T]) -> T {
        these[usize::from(self.byte()) % these.len()]
    }

    /// Bytes as they are in the input, or many times over: nobody needs a large input to send much.
    pub fn text(&mut self, most: usize) -> Vec<u8> {
        let times = match self.byte() {
            many @ 0xf8.. => 1 << (many - 0xf0),
            _ => 1,
        };
        let piece = self.bytes(0xff);
        let mut text = piece.repeat(times);
        text.truncate(most);
        text
    }
}

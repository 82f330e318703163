//! Writes protocol buffer messages; see "Encoding" in the documentation of Protocol Buffers.
//! (`edit::wire` is for messages that were read, and keeps them whole.)

/// A message, in the bytes it is sent as.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a number: any integer that is not negative, a bool, an enum.
    pub fn number(mut self, field: u32, value: impl Into<u64>) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value.into());
        self
    }

    /// Adds an int32 or int64, which can be negative.
    pub fn signed(self, field: u32, value: impl Into<i64>) -> Self {
        self.number(field, value.into().cast_unsigned())
    }

    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    pub fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of "Encoding" in the documentation of Protocol Buffers.
    #[test]
    fn messages_are_encoded_as_documented() {
        let inner = Message::new().number(1, 150_u32);
        assert_eq!(inner.as_bytes(), [0x08, 0x96, 0x01]);
        assert_eq!(
            Message::new().text(2, "testing").as_bytes(),
            b"\x12\x07testing"
        );
        assert_eq!(
            Message::new().message(3, &inner).as_bytes(),
            [0x1a, 0x03, 0x08, 0x96, 0x01]
        );
        let minus_two = Message::new().signed(1, -2);
        assert_eq!(minus_two.as_bytes().len(), 11);
        assert_eq!(minus_two.as_bytes()[..2], [0x08, 0xfe]);
    }
}

//! Reads images of CRIU to their ends: whether each record is what it says.
//!
//! `lib/pycriu/images/images.py` of CRIU tells which images have data between their records.

use std::{fs, path::Path};

use super::{
    EditError,
    image::{COMMON_MAGIC, SERVICE_MAGIC, word},
    wire::Message,
};

/// Where an image is not as CRIU writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The record in question, the first being 1; 0 for what comes before them.
    pub record: usize,
    pub what: &'static str,
}

/// Images that are no records: memory, archives, what other programs wrote, and System V IPC.
const RAW: [&str; 14] = [
    "pages-",
    "tmpfs-",
    "ifaddr-",
    "route-",
    "route6-",
    "rule-",
    "iptables-",
    "ip6tables-",
    "nftables-",
    "netns-ct-",
    "netns-exp-",
    "ipcns-shm-",
    "ipcns-msg-",
    "ipcns-sem-",
];

/// The fields that tell how many bytes follow each record, by the beginning of the image's name.
const FOLLOWED: [(&str, &[u32]); 5] = [
    // `bytes` of `pipe_data_entry`.
    ("pipes-data", &[2]),
    ("fifo-data", &[2]),
    // `length` of `sk_packet_entry`.
    ("sk-queues", &[2]),
    // `inq_len` and `outq_len` of `tcp_stream_entry`.
    ("tcp-stream-", &[1, 3]),
    // `keys_bytes` and `values_bytes` of `bpfmap_data_entry`.
    ("bpfmap-data", &[2, 3]),
];

/// Begins the inventory, which has the version of the others and so none of its own.
const INVENTORY_MAGIC: u32 = 0x5831_3116;

const GHOST: &str = "ghost-file-";

/// `chunks` of `ghost_file_entry`, and `len` of `ghost_chunk_entry`.
const GHOST_CHUNKS: u32 = 7;
const GHOST_CHUNK_LEN: u32 = 1;

/// Reads an image to its end; returns how many records it has, or where it is damaged. What has no
/// records is not looked at.
///
/// # Errors
/// [`EditError::Read`].
pub fn parse_whole(path: &Path) -> Result<Result<usize, Fault>, EditError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.ends_with(".img") || RAW.iter().any(|raw| name.starts_with(raw)) {
        return Ok(Ok(0));
    }
    let bytes = fs::read(path).map_err(|source| EditError::Read {
        path: path.into(),
        source,
    })?;
    Ok(parse(&name, &bytes))
}

pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<usize, Fault> {
    let head = match word(bytes, 0) {
        Some(COMMON_MAGIC | SERVICE_MAGIC) => 8,
        Some(INVENTORY_MAGIC) => 4,
        _ => bytes.len() + 1,
    };
    let mut rest = bytes.get(head..).ok_or(Fault {
        record: 0,
        what: "unexpected magic number",
    })?;
    let mut record = 0;
    let mut in_chunks = false;
    while !rest.is_empty() {
        record += 1;
        let fault = |what| Fault { record, what };
        let message = take_message(&mut rest).map_err(fault)?;
        let number = |field: &u32| message.number(*field).unwrap_or(0);
        let followed = FOLLOWED.iter().find(|(begin, _)| name.starts_with(begin));
        let behind = match followed {
            Some((_, fields)) => fields.iter().map(number).fold(0, u64::saturating_add),
            None if !name.starts_with(GHOST) => 0,
            None if in_chunks => number(&GHOST_CHUNK_LEN),
            None => {
                in_chunks = number(&GHOST_CHUNKS) != 0;
                if in_chunks { 0 } else { rest.len() as u64 }
            }
        };
        let behind = usize::try_from(behind).unwrap_or(usize::MAX);
        rest = rest
            .get(behind..)
            .ok_or(fault("what follows it is cut short"))?;
    }
    Ok(record)
}

fn take_message(rest: &mut &[u8]) -> Result<Message, &'static str> {
    let len = word(rest, 0).ok_or("its length is cut short")? as usize;
    let body = rest[4..].get(..len).ok_or("it is cut short")?;
    *rest = &rest[4 + len..];
    Message::parse(body).ok_or("it is no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Record<'a> = (&'a [(u8, u8)], &'a [u8]);

    /// An image of records, each with its fields, of small numbers, and what follows it.
    fn image(records: &[Record<'_>]) -> Vec<u8> {
        let mut bytes = COMMON_MAGIC.to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        for (fields, behind) in records {
            bytes.extend((2 * fields.len() as u32).to_le_bytes());
            bytes.extend(
                fields
                    .iter()
                    .flat_map(|(field, value)| [field << 3, *value]),
            );
            bytes.extend(*behind);
        }
        bytes
    }

    #[test]
    fn images_are_read_to_their_ends() {
        let plain = image(&[(&[(1, 5)], b""), (&[], b"")]);
        assert_eq!(parse("files.img", &plain), Ok(2));
        let pipes = image(&[(&[(1, 1), (2, 3)], b"abc"), (&[(2, 0)], b"")]);
        assert_eq!(parse("pipes-data.img", &pipes), Ok(2));
        let stream = image(&[(&[(1, 1), (3, 2)], b"iOO")]);
        assert_eq!(parse("tcp-stream-1a.img", &stream), Ok(1));
        let ghost = image(&[(&[(1, 0)], b"anything up to the end")]);
        assert_eq!(parse("ghost-file-1.img", &ghost), Ok(1));
        let inventory = [&INVENTORY_MAGIC.to_le_bytes()[..], &plain[8..]].concat();
        assert_eq!(parse("inventory.img", &inventory), Ok(2));
        let chunks = image(&[(&[(7, 1)], b""), (&[(1, 2)], b"ab"), (&[(1, 1)], b"c")]);
        assert_eq!(parse("ghost-file-2.img", &chunks), Ok(3));
    }

    #[test]
    fn the_record_that_is_damaged_is_named() {
        let whole = image(&[(&[(1, 5)], b""), (&[(1, 6)], b"")]);
        let fault = |name, bytes: &[u8]| {
            let Fault { record, what } = parse(name, bytes).unwrap_err();
            (record, what)
        };
        let cut = |by| &whole[..whole.len() - by];
        assert_eq!(fault("a.img", cut(1)), (2, "it is cut short"));
        assert_eq!(fault("a.img", cut(3)), (2, "its length is cut short"));
        assert_eq!(fault("a.img", b"none"), (0, "unexpected magic number"));
        // A field of a type that there is not.
        let bad = image(&[(&[(1, 5)], b""), (&[(31, 5)], b"")]).replace(31 << 3, 0xff);
        assert_eq!(fault("a.img", &bad), (2, "it is no message"));
        let pipes = image(&[(&[(2, 4)], b"abc")]);
        assert_eq!(
            fault("pipes-data.img", &pipes),
            (1, "what follows it is cut short")
        );
        // Two lengths whose sum is more than a number holds.
        let mut stream = COMMON_MAGIC.to_le_bytes().to_vec();
        stream.extend([0, 0, 0, 0, 22, 0, 0, 0]);
        for key in [1 << 3, 3 << 3] {
            stream.push(key);
            stream.extend([0xff; 9]);
            stream.push(1);
        }
        assert_eq!(
            fault("tcp-stream-1.img", &stream),
            (1, "what follows it is cut short")
        );
    }

    trait Replace {
        fn replace(self, from: u8, to: u8) -> Self;
    }

    impl Replace for Vec<u8> {
        fn replace(mut self, from: u8, to: u8) -> Self {
            let place = self.iter().rposition(|&byte| byte == from).unwrap();
            self[place] = to;
            self
        }
    }

    #[test]
    fn what_has_no_records_is_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["pages-1.img", "iptables-9.img", "descriptors.json"] {
            let path = folder.path().join(name);
            fs::write(&path, "none").unwrap();
            assert_eq!(parse_whole(&path).unwrap(), Ok(0), "{name}");
        }
        let path = folder.path().join("files.img");
        assert!(parse_whole(&path).is_err());
        fs::write(&path, "none").unwrap();
        assert!(parse_whole(&path).unwrap().is_err());
    }
}

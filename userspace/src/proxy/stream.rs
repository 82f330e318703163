//! Bytes on their way through the proxy: a source with a buffer of fixed size, a sink, and what carries
//! from one to the other. No more is read than there is room for, so that a slow reader slows the writer.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::http1::{
    body::{Decoder, Step, encode, encode_end},
    head::{Refusal, Scan},
};

/// How much is gathered before it is written.
const ENOUGH: usize = 16 << 10;

/// A reader and what was read of it but not taken.
#[derive(Debug)]
pub struct Source<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: AsyncRead + Unpin> Source<R> {
    pub fn new(reader: R, size: usize) -> Self {
        Self {
            reader,
            buffer: vec![0; size].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What is there.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn is_full(&self) -> bool {
        self.end - self.start == self.buffer.len()
    }

    /// How many bytes there is room for, in all.
    pub fn size(&self) -> usize {
        self.buffer.len()
    }

    /// Takes bytes that are there.
    pub fn take(&mut self, len: usize) {
        self.start += len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once; 0 is the end. What is read stays if the wait is given up.
    ///
    /// # Errors
    /// What read(2) says; if there is no room.
    pub async fn read(&mut self) -> io::Result<usize> {
        if self.end == self.buffer.len() {
            if self.start == 0 {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let len = self.reader.read(&mut self.buffer[self.end..]).await?;
        self.end += len;
        Ok(len)
    }

    /// Reads until the end of a section of fields; returns its length. None at the end of all.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn read_head(&mut self) -> Result<Option<usize>, ReadError> {
        let mut scan = Scan::default();
        loop {
            if let Some(len) = scan.find(self.bytes())? {
                return Ok(Some(len));
            }
            if self.is_full() {
                return Err(ReadError::TooLong);
            }
            if self.read().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits until the other side is gone. What it sends meanwhile is kept, as far as there is room.
    pub async fn gone(&mut self) {
        loop {
            if self.is_full() {
                return std::future::pending().await;
            }
            match self.read().await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    pub fn reader(&self) -> &R {
        &self.reader
    }
}

/// Why a head was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read")]
    Read(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the head is too long")]
    TooLong,
}

/// A writer, and what is to be written to it.
#[derive(Debug)]
pub struct Sink<W> {
    pub writer: W,
    pub out: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> Sink<W> {
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            out: Vec::new(),
        }
    }

    /// Writes all that is to be written.
    ///
    /// # Errors
    /// What write(2) says; `TimedOut` if nothing is taken for that long.
    pub async fn flush(&mut self, stall: Duration) -> io::Result<()> {
        write_all(&mut self.writer, &self.out, stall).await?;
        self.writer.flush().await?;
        self.out.clear();
        Ok(())
    }
}

/// Writes bytes, as long as some are taken within the time.
async fn write_all(
    writer: &mut (impl AsyncWrite + Unpin),
    mut bytes: &[u8],
    stall: Duration,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match timeout(stall, writer.write(bytes)).await?? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            len => bytes = &bytes[len..],
        }
    }
    Ok(())
}

/// Why a body did not get through.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("it is cut short")]
    CutShort,
    #[error(transparent)]
    Malformed(#[from] Refusal),
    #[error("cannot write it")]
    Write(#[source] io::Error),
}

/// How long one may wait for each side of a body.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For more to come; for ever if none.
    pub read: Option<Duration>,
    pub write: Duration,
}

/// Carries a body from one side to the other, in chunks or as it is; what the sink has to write already
/// goes first. `count` is told of the bytes.
///
/// # Errors
/// See [`CarryError`].
pub async fn carry<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    source: &mut Source<R>,
    decoder: &mut Decoder,
    sink: &mut Sink<W>,
    as_chunks: bool,
    patience: Patience,
    count: impl Fn(usize),
) -> Result<(), CarryError> {
    loop {
        let step = decoder.step(source.bytes())?;
        if matches!(step, Step::More | Step::Done) || sink.out.len() >= ENOUGH {
            sink.flush(patience.write)
                .await
                .map_err(CarryError::Write)?;
        }
        match step {
            Step::Skip(len) => source.take(len),
            Step::Data(len) => {
                let data = &source.bytes()[..len];
                if !as_chunks && len >= ENOUGH / 2 {
                    // Much at once need not be copied.
                    sink.flush(patience.write)
                        .await
                        .map_err(CarryError::Write)?;
                    let written = write_all(&mut sink.writer, data, patience.write).await;
                    written.map_err(CarryError::Write)?;
                } else {
                    encode(&mut sink.out, data, as_chunks);
                }
                count(len);
                source.take(len);
            }
            Step::Trailers(len) => {
                if as_chunks {
                    encode_end(&mut sink.out, &source.bytes()[..len])?;
                }
                source.take(len);
            }
            Step::Done => return Ok(()),
            Step::More => {
                if source.is_full() {
                    return Err(Refusal::TooManyFields.into());
                }
                let read = match patience.read {
                    Some(limit) => timeout(limit, source.read()).await,
                    None => Ok(source.read().await),
                };
                let read = read.unwrap_or_else(|late| Err(late.into()));
                if read.map_err(CarryError::Read)? == 0 {
                    if !decoder.ends_with_connection() {
                        return Err(CarryError::CutShort);
                    }
                    if as_chunks {
                        encode_end(&mut sink.out, &[])?;
                    }
                    return sink.flush(patience.write).await.map_err(CarryError::Write);
                }
            }
        }
    }
}

/// Carries all bytes both ways, whatever they mean, until both sides have ended or one fails.
///
/// # Errors
/// What read(2) and write(2) say.
pub async fn tunnel<A, B, C, D>(
    (one, other): (&mut Source<A>, &mut Sink<B>),
    (far, near): (&mut Source<C>, &mut Sink<D>),
    count_in: impl Fn(usize),
    count_out: impl Fn(usize),
) -> io::Result<()>
where
    A: AsyncRead + Unpin,
    B: AsyncWrite + Unpin,
    C: AsyncRead + Unpin,
    D: AsyncWrite + Unpin,
{
    tokio::try_join!(one_way(one, near, count_in), one_way(far, other, count_out),)?;
    Ok(())
}

async fn one_way(
    source: &mut Source<impl AsyncRead + Unpin>,
    sink: &mut Sink<impl AsyncWrite + Unpin>,
    count: impl Fn(usize),
) -> io::Result<()> {
    loop {
        sink.writer.write_all(source.bytes()).await?;
        sink.writer.flush().await?;
        count(source.bytes().len());
        source.take(source.bytes().len());
        if source.read().await? == 0 {
            return sink.writer.shutdown().await;
        }
    }
}

//! Messages between the processes of a job: frames of a length and a message, over a connection.
//!
//! What a peer sends is not trusted: a frame that is too long, or is no such message, is an error, and the
//! connection ends.

use crate::{
    host::Connection,
    wire::frame::{read_frame, FRAME_BYTES_MAX},
};
use bytes::Bytes;
use serde::{de::DeserializeOwned, Serialize};
use std::io;
use tokio::io::{split as split_io, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf};

/// A message as it goes over the wire.
pub type Frame = Bytes;

/// Where messages come from.
pub struct Reader(BufReader<ReadHalf<Box<dyn Connection>>>);

/// Where messages go to.
pub struct Writer(BufWriter<WriteHalf<Box<dyn Connection>>>);

/// The two directions of a connection.
pub fn split(connection: Box<dyn Connection>) -> (Reader, Writer) {
    let (reader, writer) = split_io(connection);
    (
        Reader(BufReader::new(reader)),
        Writer(BufWriter::new(writer)),
    )
}

impl Reader {
    /// The next message; nothing at the end of the stream.
    pub async fn read<M: DeserializeOwned>(&mut self) -> io::Result<Option<M>> {
        let Some(frame) = read_frame(&mut self.0).await? else {
            return Ok(None);
        };
        let (message, rest) = postcard::take_from_bytes(&frame)
            .map_err(|error| garbage(format!("a message that cannot be read: {error}")))?;
        match rest {
            [] => Ok(Some(message)),
            _ => Err(garbage(format!("{} bytes behind a message", rest.len()))),
        }
    }
}

impl Writer {
    /// Writes a message at once.
    pub async fn write<M: Serialize>(&mut self, message: &M) -> io::Result<()> {
        self.write_frame(&frame(message)).await?;
        self.flush().await
    }

    /// Writes a message, maybe later.
    pub async fn write_frame(&mut self, frame: &Frame) -> io::Result<()> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(garbage(format!("a frame of {} bytes", frame.len())));
        }
        self.0.write_all(frame).await
    }

    /// Writes what waits.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.0.flush().await
    }
}

/// The frame of a message.
pub fn frame<M: Serialize>(message: &M) -> Frame {
    let bytes = postcard::to_extend(message, vec![0; 4]).expect("messages are plain data");
    let mut bytes: Vec<u8> = bytes;
    let len = (bytes.len() - 4) as u32;
    bytes[..4].copy_from_slice(&len.to_be_bytes());
    bytes.into()
}

/// What a peer has sent makes no sense.
pub fn garbage(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_and_garbage_is_refused() {
        let block = |future| futures::executor::block_on(future);
        let read = |bytes: Vec<u8>| {
            block(async move {
                let (near, mut far) = tokio::io::duplex(1 << 16);
                far.write_all(&bytes).await.unwrap();
                drop(far);
                let (mut reader, _writer) = split(Box::new(near));
                reader.read::<(u32, String)>().await
            })
        };
        let message = (7u32, "seven".to_owned());
        let whole = frame(&message).to_vec();
        assert_eq!(read(whole.clone()).unwrap(), Some(message));
        assert_eq!(read(Vec::new()).unwrap(), None);
        assert!(read(whole[..6].to_vec()).is_err(), "cut off");
        assert!(read(vec![0x7f, 0xff, 0xff, 0xff, 1]).is_err(), "too long");
        assert!(
            read(vec![0, 0, 0, 2, 0xff, 0xff]).is_err(),
            "no such message"
        );
        let mut longer = frame(&(7u32, "seven".to_owned(), 1u8)).to_vec();
        assert!(read(longer.clone()).is_err(), "more than a message");
        longer.truncate(3);
        assert!(matches!(read(longer), Ok(None) | Err(_)));
    }
}

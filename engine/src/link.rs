//! Messages between the processes of a job: frames of a length and a message, over a connection.
//!
//! Who connects first shows the job's [`Token`]. Whoever does not is not listened to: no more than its sixteen bytes
//! are read. What a peer sends is not trusted, either: a frame that is too long, or is no such message, is an error,
//! and the connection ends.

use crate::{
    host::{Connection, Listener, Net},
    log::rarely::Rarely,
    wire::frame::{read_frame, FRAME_BYTES_MAX},
};
use bytes::Bytes;
use serde::{de::DeserializeOwned, Deserialize, Serialize};
use std::{fmt, future::Future, io, sync::Arc, time::Duration};
use tokio::{
    io::{
        split as split_io, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf,
    },
    sync::Semaphore,
};

/// What only the processes of a job know, and whoever may read its objects.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token([u8; 16]);

impl Token {
    /// The token that a drawn number makes.
    pub fn of(drawn: u128) -> Token {
        Token(drawn.to_be_bytes())
    }

    /// Whether these bytes are the token. How long that takes does not tell how many of them are right.
    fn is(&self, bytes: &[u8; 16]) -> bool {
        let differences = self.0.iter().zip(bytes).map(|(mine, theirs)| mine ^ theirs);
        std::hint::black_box(differences.fold(0, |all, one| all | one)) == 0
    }
}

/// A token has no place in a log.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl From<Token> for String {
    fn from(token: Token) -> String {
        format!("{:032x}", u128::from_be_bytes(token.0))
    }
}

impl TryFrom<String> for Token {
    type Error = String;

    fn try_from(text: String) -> Result<Token, String> {
        let all_digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = Some(&*text).filter(|text| text.len() == 32 && all_digits);
        let number = digits.and_then(|text| u128::from_str_radix(text, 16).ok());
        number
            .map(Token::of)
            .ok_or_else(|| format!("`{text}` is no token of 32 digits"))
    }
}

/// Whoever connects shows the token and says something within this time.
const GREETING_WITHIN: Duration = Duration::from_secs(3);
/// Connections of those who have not yet, at a time.
const STRANGERS_MAX: usize = 64;

/// A message as it goes over the wire.
pub type Frame = Bytes;

/// Where messages come from.
pub struct Reader(BufReader<ReadHalf<Box<dyn Connection>>>);

/// Where messages go to.
pub struct Writer(BufWriter<WriteHalf<Box<dyn Connection>>>);

/// Connects, and shows the token.
pub async fn call(net: &dyn Net, address: &str, token: Token) -> io::Result<(Reader, Writer)> {
    let (reader, mut writer) = split(net.connect(address).await?);
    // It goes with the first message.
    writer.0.write_all(&token.0).await?;
    Ok((reader, writer))
}

/// Takes the connections that come to a port, each with the first message of who has shown the token. Whoever shows
/// none, or is silent for too long, is sent away; few of them are there at a time.
pub async fn welcome<M, F>(
    listener: Box<dyn Listener>,
    token: Token,
    greet: impl Fn(M, (Reader, Writer)) -> F + Clone + Send + 'static,
) where
    M: DeserializeOwned + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(STRANGERS_MAX));
    let deaf = Rarely::default();
    loop {
        let stranger = room.clone().acquire_owned().await;
        let connection = match listener.accept().await {
            Ok((connection, _)) => connection,
            Err(error) => {
                if let Some(unsaid) = deaf.say() {
                    let port = listener.port();
                    tracing::warn!(name: "link.deaf", port, %error, unsaid, "nobody can connect; it tries again");
                }
                tokio::time::sleep(GREETING_WITHIN / 10).await;
                continue;
            }
        };
        let greet = greet.clone();
        tokio::spawn(async move {
            let greeting = async {
                let (mut reader, writer) = answer(connection, token).await?;
                let first: Option<M> = reader.read().await?;
                Ok::<_, io::Error>(first.map(|first| (first, (reader, writer))))
            };
            let greeted = tokio::time::timeout(GREETING_WITHIN, greeting).await;
            drop(stranger);
            // Silent, gone, or no peer of ours.
            if let Ok(Ok(Some((first, connection)))) = greeted {
                greet(first, connection).await;
            }
        });
    }
}

/// Takes the connection of whoever shows the token.
async fn answer(connection: Box<dyn Connection>, token: Token) -> io::Result<(Reader, Writer)> {
    let (mut reader, writer) = split(connection);
    let mut shown = [0; 16];
    reader.0.read_exact(&mut shown).await?;
    match token.is(&shown) {
        true => Ok((reader, writer)),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// The two directions of a connection.
fn split(connection: Box<dyn Connection>) -> (Reader, Writer) {
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

    #[test]
    fn whoever_does_not_show_the_token_is_not_listened_to() {
        let token = Token::of(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let listened_to = |bytes: &[u8]| {
            futures::executor::block_on(async move {
                let (near, mut far) = tokio::io::duplex(1 << 16);
                far.write_all(bytes).await.unwrap();
                drop(far);
                answer(Box::new(near), token).await.is_ok()
            })
        };
        assert!(listened_to(&token.0));
        assert!(listened_to(&[&token.0[..], b"more"].concat()));
        assert!(!listened_to(&[]));
        assert!(!listened_to(&token.0[..15]), "cut off");
        for at in 0..16 {
            let mut other = token.0;
            other[at] ^= 1;
            assert!(!listened_to(&other), "byte {at}");
        }
        assert!(
            !listened_to(&[&[0, 0, 0, 1, 1][..], &[0; 60]].concat()),
            "a stop of old"
        );
        let written = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&written).unwrap(), token);
        assert!(serde_json::from_str::<Token>("\"+0123456789abcdef0123456789abcde\"").is_err());
        assert!(!format!("{token:?}").contains("0123"), "not in a log");
    }
}

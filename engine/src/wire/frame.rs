//! Frames: a length, a header, a message. What a peer sends is never trusted.

use super::{
    guarded::Guarded,
    oversize::{self, Oversized, OVERSIZE_BYTES_MAX},
    skeleton, Api,
};
use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{ApiKey, RequestHeader, ResponseHeader},
    protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes},
};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// A frame is at most this large; a length beyond it is an error, not an allocation.
pub const FRAME_BYTES_MAX: usize = 16 << 20;

/// Reads a frame, without its length. Nothing at the end of the stream.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let Some(bytes) = read_length(stream).await? else {
        return Ok(None);
    };
    if bytes > FRAME_BYTES_MAX {
        return Err(garbage(format!("a frame of {bytes} bytes")));
    }
    // The buffer grows with what arrives: a length alone takes no memory.
    let mut frame = BytesMut::with_capacity(bytes.min(64 << 10));
    read_until(stream, &mut frame, bytes).await?;
    Ok(Some(frame.freeze()))
}

/// Reads the rest of a request that is too large, and keeps what its refusal needs: see [`oversize`].
pub async fn read_oversized(
    stream: &mut (impl AsyncRead + Unpin + Send),
    bytes: usize,
) -> io::Result<Oversized> {
    match bytes <= OVERSIZE_BYTES_MAX {
        true => oversize::read(stream, bytes).await,
        false => Err(garbage(format!("a frame of {bytes} bytes"))),
    }
}

/// Reads the length of a frame. Nothing at the end of the stream.
pub async fn read_length(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<usize>> {
    let mut len = [0; 4];
    match stream.read_exact(&mut len).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let len = i32::from_be_bytes(len);
    match usize::try_from(len) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(_) => Err(garbage(format!("a frame of {len} bytes"))),
    }
}

/// Reads on until so many bytes of a frame are there.
pub async fn read_until(
    stream: &mut (impl AsyncRead + Unpin),
    frame: &mut BytesMut,
    bytes: usize,
) -> io::Result<()> {
    let mut rest = stream.take((bytes - frame.len()) as u64);
    while frame.len() < bytes {
        if rest.read_buf(frame).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// The frame of a request.
pub fn encode_request<R: Request>(
    request: &R,
    version: i16,
    correlation: i32,
) -> io::Result<Bytes> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation)
        .with_client_id(Some(StrBytes::from_static_str("seedbed")));
    let header_version = R::header_version(version);
    encode(&header, header_version, request, version)
}

/// The frame of a response to a request of kind `key`.
pub fn encode_response<M: Encodable>(
    key: ApiKey,
    version: i16,
    correlation: i32,
    response: &M,
) -> io::Result<Bytes> {
    let header = ResponseHeader::default().with_correlation_id(correlation);
    encode(
        &header,
        key.response_header_version(version),
        response,
        version,
    )
}

fn encode<H: Encodable, M: Encodable>(
    header: &H,
    header_version: i16,
    message: &M,
    version: i16,
) -> io::Result<Bytes> {
    let mut frame = BytesMut::new();
    frame.put_i32(0);
    header.encode(&mut frame, header_version).map_err(garbage)?;
    message.encode(&mut frame, version).map_err(garbage)?;
    let bytes = frame.len() - 4;
    let len = i32::try_from(bytes).map_err(|_| garbage(format!("a frame of {bytes} bytes")))?;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    Ok(frame.freeze())
}

/// What a request is, before its message is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which request.
    pub key: i16,
    /// Its version.
    pub version: i16,
    /// What its response repeats.
    pub correlation: i32,
}

/// The first eight bytes of a request, which are the same in all versions.
pub fn peek_head(frame: &[u8]) -> io::Result<Head> {
    let Some(head) = frame.first_chunk::<8>() else {
        return Err(garbage(format!("a request of {} bytes", frame.len())));
    };
    Ok(Head {
        key: i16::from_be_bytes([head[0], head[1]]),
        version: i16::from_be_bytes([head[2], head[3]]),
        correlation: i32::from_be_bytes([head[4], head[5], head[6], head[7]]),
    })
}

/// A request that is served, and claims no more than it holds: it was walked over.
pub struct Walked {
    frame: Bytes,
    version: i16,
    elements: usize,
}

/// Walks over a request of this kind and version.
pub fn walk(frame: Bytes, api: Api, version: i16) -> io::Result<Walked> {
    let elements = skeleton::check(api, version, &frame).map_err(garbage)?;
    Ok(Walked {
        frame,
        version,
        elements,
    })
}

impl Walked {
    /// How many elements it has, in all its arrays together: what it takes once it is decoded.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// The client id in its header, for people; empty if there is none.
    pub fn client(&self) -> String {
        let len = self.frame.get(8..10);
        let len = len.map_or(0, |len| i16::from_be_bytes([len[0], len[1]]));
        let id = self.frame.get(10..10 + len.max(0) as usize);
        String::from_utf8_lossy(id.unwrap_or_default()).into_owned()
    }

    /// Its message.
    pub fn decode<M: Decodable + HeaderVersion>(&self) -> io::Result<M> {
        let mut rest = self.frame.clone();
        RequestHeader::decode(&mut rest, M::header_version(self.version)).map_err(garbage)?;
        M::decode(&mut rest, self.version).map_err(garbage)
    }
}

/// The message of a request of kind `R`.
#[cfg(test)]
pub(super) fn decode_request<R: Request>(frame: &Bytes, version: i16) -> io::Result<R> {
    let api = super::api_of(R::KEY).expect("it is served");
    walk(frame.clone(), api, version)?.decode()
}

/// A response to `R`: its correlation id, and its message.
pub fn decode_response<R: Request>(frame: &Bytes, version: i16) -> io::Result<R::Response> {
    let mut rest = Guarded::new(frame.clone());
    let header_version = <R::Response as HeaderVersion>::header_version(version);
    ResponseHeader::decode(&mut rest, header_version).map_err(garbage)?;
    R::Response::decode(&mut rest, version).map_err(garbage)
}

/// The peer sent something that makes no sense.
pub fn garbage(what: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

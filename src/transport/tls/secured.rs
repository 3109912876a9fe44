//! A secured stream as HTTP/2 sees it: where a write has failed, all that comes out of it is the reason.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;

use super::explain;
use crate::transport::dial::Socket;
use crate::transport::meter::{self, Counted};

/// How long and how far to read for the reason. The server has closed when a write fails, and the end of what
/// it sent is on this machine already: this only bounds streams of another make.
const PATIENCE: Duration = Duration::from_secs(1);
const FAR: usize = 64 << 10;

type Session = TlsStream<Counted<Socket>>;

/// The bytes of one connection, secured.
#[derive(Debug)]
pub(in crate::transport) struct Secured {
    session: Session,
    /// There since a write failed.
    end: Option<End>,
}

#[derive(Debug)]
enum End {
    /// A server that refuses our certificate says why after the handshake, and closes: our next write fails,
    /// while what the server said is still to be read.
    Asked {
        error: io::Error,
        left: usize,
        patience: Pin<Box<Sleep>>,
    },
    /// Nothing is read any more. What the server sent before may be cut short anywhere.
    Known(io::Error),
}

impl Secured {
    pub(in crate::transport) fn new(session: Session) -> Self {
        Self { session, end: None }
    }

    fn poll_writing<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut Session>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Self { session, end } = self;
        let end = match end {
            Some(end) => end,
            None => match write(Pin::new(session), cx) {
                Poll::Ready(Err(error)) => end.insert(End::of(error)),
                written => return written,
            },
        };
        end.poll(session, cx).map(Err)
    }
}

impl End {
    /// After a write that failed like this.
    fn of(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Asked {
                error,
                left: FAR,
                patience: Box::pin(tokio::time::sleep(PATIENCE)),
            },
            _ => Self::Known(error),
        }
    }

    /// The server's own reason, else the error of the write. Reading and writing ask alike, since either may be
    /// all that h2 does.
    fn poll(&mut self, session: &mut Session, cx: &mut Context<'_>) -> Poll<io::Error> {
        let said = match self {
            Self::Known(_) => None,
            Self::Asked { left, patience, .. } => ready!(poll_said(session, left, patience, cx)),
        };
        let (Self::Known(error) | Self::Asked { error, .. }) = self;
        let error = said.unwrap_or_else(|| meter::copy(error));
        let told = meter::copy(&error);
        *self = Self::Known(error);
        Poll::Ready(told)
    }
}

/// Reads on to a reason in TLS; `None` where there is no such.
fn poll_said(
    session: &mut Session,
    left: &mut usize,
    patience: &mut Pin<Box<Sleep>>,
    cx: &mut Context<'_>,
) -> Poll<Option<io::Error>> {
    let mut unread = [0; 4_096];
    while *left > 0 {
        let mut buf = ReadBuf::new(&mut unread);
        match Pin::new(&mut *session).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                *left = left.saturating_sub(buf.filled().len());
            }
            Poll::Ready(Err(said)) if said.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
                return Poll::Ready(Some(explain(said)));
            }
            Poll::Ready(_) => break,
            // The runtime may not have seen the end of the socket yet.
            Poll::Pending => return patience.as_mut().poll(cx).map(|()| None),
        }
    }
    Poll::Ready(None)
}

impl AsyncRead for Secured {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { session, end } = self.get_mut();
        match end {
            // Alerts may come long after the handshake.
            None => Pin::new(session).poll_read(cx, buf).map_err(explain),
            Some(end) => end.poll(session, cx).map(Err),
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_writing(cx, |session, cx| session.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut()
            .poll_writing(cx, |session, cx| session.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.session.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut()
            .poll_writing(cx, |session, cx| session.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().session).poll_shutdown(cx)
    }
}

#[cfg(all(test, any(feature = "tls-ring", feature = "tls-aws-lc")))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use http::HeaderValue;
    use http::uri::Scheme;
    use rcgen::CertifiedKey;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::{AlertDescription, ServerConfig, ServerConnection};
    use tokio_rustls::{TlsAcceptor, server};

    use super::super::{Credentials, Tls, handshake, server_name};
    use super::*;
    use crate::endpoint::{Address, Endpoint};
    use crate::transport::dial::Dialler;
    use crate::transport::link::Link;

    /// A pipe whose writes fail once it is told so, while what was sent to it can be read.
    struct Shut {
        pipe: DuplexStream,
        shut: Arc<AtomicBool>,
        kind: ErrorKind,
    }

    impl AsyncRead for Shut {
        fn poll_read(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().pipe).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Shut {
        fn poll_write(
            self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            match this.shut.load(Ordering::Relaxed) {
                true => Poll::Ready(Err(this.kind.into())),
                false => Pin::new(&mut this.pipe).poll_write(cx, buf),
            }
        }

        fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().pipe).poll_flush(cx)
        }

        fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().pipe).poll_shutdown(cx)
        }
    }

    /// Our side of a session, the server's, and what makes our writes fail from then on.
    async fn pair(kind: ErrorKind) -> (Secured, server::TlsStream<DuplexStream>, Arc<AtomicBool>) {
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = Tls::new().with_roots_pem(cert.pem());
        let credentials = Credentials::load(tls).unwrap();

        let (pipe, theirs) = tokio::io::duplex(256 << 10);
        let shut = Arc::new(AtomicBool::new(false));
        let ours = Shut {
            pipe,
            shut: shut.clone(),
            kind,
        };
        let ours = std::sync::Mutex::new(Some(ours));
        let dialler = Dialler::new(move |_: &Endpoint, _: &Address| {
            let ours = ours.lock().unwrap().take();
            async { ours.ok_or_else(|| io::Error::other("dialled twice")) }
        });
        let address: Address = "127.0.0.1:1".parse().unwrap();
        let endpoint = Endpoint::new(address.clone());
        let socket = dialler.dial(&endpoint, &address).await.unwrap();
        let agent = HeaderValue::from_static("a");
        let runtime = tokio::runtime::Handle::current();
        let authority = "a.test".parse().unwrap();
        let link = Link::new(address.clone(), Scheme::HTTPS, authority, agent, runtime);
        let socket = Counted::new(socket, Arc::new(link));
        let accepting = TlsAcceptor::from(Arc::new(config)).accept(theirs);
        let name = server_name("a.test").unwrap();
        let dialling = handshake(&credentials, name, &address, socket);
        let (session, theirs) = tokio::join!(dialling, accepting);
        (Secured::new(session.unwrap()), theirs.unwrap(), shut)
    }

    /// What reading gives: never a byte.
    async fn read(ours: &mut Secured) -> io::Error {
        let mut buf = [0; 100];
        match ours.read(&mut buf).await {
            Err(error) => error,
            Ok(bytes) => panic!("{bytes} bytes of the middle of the stream"),
        }
    }

    /// Sends an alert, as a server does that refuses the client: what rustls makes of a record that is none.
    async fn refuse(theirs: server::TlsStream<DuplexStream>) -> DuplexStream {
        let (mut pipe, mut session): (_, ServerConnection) = theirs.into_inner();
        let nonsense = [
            23, 3, 3, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        session.read_tls(&mut &nonsense[..]).unwrap();
        session.process_new_packets().unwrap_err();
        let mut alert = Vec::new();
        session.write_tls(&mut alert).unwrap();
        pipe.write_all(&alert).await.unwrap();
        pipe
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failed_write_reading_gives_the_servers_reason_and_no_data() {
        let (mut ours, mut theirs, shut) = pair(ErrorKind::BrokenPipe).await;
        theirs.write_all(&[7; 40_000]).await.unwrap();
        theirs.flush().await.unwrap();
        shut.store(true, Ordering::Relaxed);
        // Both halves are asked while the reason is still to come, as by h2.
        let noop = &mut Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut ours).poll_write(noop, b"more").is_pending());
        theirs.write_all(&[7; 1_000]).await.unwrap();
        theirs.flush().await.unwrap();
        let mut buf = [0; 100];
        let mut buf = ReadBuf::new(&mut buf);
        assert!(Pin::new(&mut ours).poll_read(noop, &mut buf).is_pending());
        assert!(buf.filled().is_empty());
        let _pipe = refuse(theirs).await;
        for _ in 0..2 {
            let error = read(&mut ours).await.to_string();
            let alert = format!("{:?}", AlertDescription::BadRecordMac);
            assert!(error.contains(&alert), "{error}");
        }
        assert!(ours.write_all(b"more").await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_without_a_reason_leaves_the_error_of_the_write() {
        for kind in [
            ErrorKind::BrokenPipe,
            ErrorKind::ConnectionReset,
            // Not by the server: nothing is waited for.
            ErrorKind::TimedOut,
        ] {
            let (mut ours, mut theirs, shut) = pair(kind).await;
            theirs.write_all(&[7; 1_000]).await.unwrap();
            theirs.flush().await.unwrap();
            shut.store(true, Ordering::Relaxed);
            let begin = tokio::time::Instant::now();
            let error = ours.write_all(b"more").await.unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(begin.elapsed() <= PATIENCE + Duration::from_millis(10));
            assert_eq!(read(&mut ours).await.kind(), kind);
        }
        // More than anybody reads for it.
        let (mut ours, mut theirs, shut) = pair(ErrorKind::BrokenPipe).await;
        theirs.write_all(&[7; 2 * FAR]).await.unwrap();
        theirs.flush().await.unwrap();
        shut.store(true, Ordering::Relaxed);
        let begin = tokio::time::Instant::now();
        let error = ours.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        assert_eq!(read(&mut ours).await.kind(), ErrorKind::BrokenPipe);
        assert!(begin.elapsed() < PATIENCE);
    }
}

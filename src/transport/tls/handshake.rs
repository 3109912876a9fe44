//! The handshake, and why it failed in words that help whoever operates the servers.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{self, AlertDescription, CertificateError, InvalidMessage};

use super::Credentials;
use super::credentials::H2;
use crate::endpoint::Address;
use crate::error::ConnectError;
use crate::transport::dial::Socket;
use crate::transport::meter::Counted;

/// Secures `socket`: `address` must show a certificate for `name` and choose HTTP/2.
pub(in crate::transport) async fn handshake(
    credentials: &Arc<Credentials>,
    name: ServerName<'static>,
    address: &Address,
    socket: Counted<Socket>,
) -> Result<TlsStream<Counted<Socket>>, ConnectError> {
    let phase = format!("{address}: TLS handshake for {:?}", name.to_str());
    let config = credentials.current().await;
    let connecting = TlsConnector::from(config).connect(name, socket);
    let session = match connecting.await {
        Ok(session) => session,
        Err(error) => {
            return Err(ConnectError::with_source(
                phase,
                Refusal::of(error, address),
            ));
        }
    };
    let chosen = session.get_ref().1.alpn_protocol();
    if chosen == Some(H2) {
        return Ok(session);
    }
    let chosen = chosen.map(String::from_utf8_lossy);
    let chose = match &chosen {
        None => "none".to_owned(),
        Some(other) => format!("{other:?}"),
    };
    Err(ConnectError::new(format!(
        "{phase}: by ALPN the server chose {chose} and not \"h2\": it does not serve HTTP/2 here"
    )))
}

/// The same words for an error that came after the handshake.
pub(super) fn explain(error: io::Error) -> io::Error {
    let kind = error.kind();
    if kind == io::ErrorKind::UnexpectedEof {
        return io::Error::new(
            kind,
            "the server ended the connection without a TLS close_notify",
        );
    }
    match cause(&error).and_then(words) {
        Some(words) => io::Error::new(kind, Refusal { words, error }),
        None => error,
    }
}

/// Words of ours, and the library's own as their source.
#[derive(Debug)]
struct Refusal {
    words: String,
    error: io::Error,
}

impl Refusal {
    fn of(error: io::Error, address: &Address) -> Self {
        let words = match cause(&error) {
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                format!("expected TLS, and the server at {address} speaks plaintext")
            }
            Some(cause) => words(cause).unwrap_or_else(|| cause.to_string()),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                "the server closed the connection instead of answering; does it speak TLS?"
                    .to_owned()
            }
            None => error.to_string(),
        };
        Self { words, error }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl StdError for Refusal {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

fn cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// What an operator should know; `None` where rustls says it well enough.
fn words(error: &rustls::Error) -> Option<String> {
    use AlertDescription as Alert;
    let text = match error {
        rustls::Error::InvalidCertificate(error) => certificate(error),
        rustls::Error::AlertReceived(alert) => match alert {
            Alert::NoApplicationProtocol => {
                "the server offers no HTTP/2: by ALPN it refused \"h2\"".to_owned()
            }
            Alert::CertificateRequired => {
                "the server asks for a client certificate, and none was named (alert CertificateRequired)"
                    .to_owned()
            }
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::AccessDenied
            | Alert::DecryptError => {
                format!("the server does not accept our client certificate (alert {alert:?})")
            }
            Alert::ProtocolVersion => {
                "the server and this client have no version of TLS in common (alert ProtocolVersion)"
                    .to_owned()
            }
            Alert::UnrecognisedName => {
                "the server has no certificate for this name (alert UnrecognisedName)".to_owned()
            }
            alert => format!("the server broke the handshake off (alert {alert:?})"),
        },
        _ => return None,
    };
    Some(text)
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::ExpiredContext { time, not_after } => {
            let since = time.as_secs().saturating_sub(not_after.as_secs());
            format!("the server's certificate expired {} ago", span(since))
        }
        CertificateError::Expired => "the server's certificate has expired".to_owned(),
        CertificateError::NotValidYetContext { time, not_before } => {
            let until = not_before.as_secs().saturating_sub(time.as_secs());
            let until = span(until);
            format!("the server's certificate is not valid yet, for another {until} by our clock")
        }
        CertificateError::NotValidYet => "the server's certificate is not valid yet".to_owned(),
        CertificateError::NotValidForNameContext { presented, .. } => {
            format!(
                "the server's certificate is for another name: {}",
                names(presented)
            )
        }
        CertificateError::NotValidForName => {
            "the server's certificate is for another name".to_owned()
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is from an unknown issuer, none of the trusted roots"
                .to_owned()
        }
        error => format!("the server's certificate cannot be accepted: {error}"),
    }
}

/// The first of the names: a certificate may hold thousands, of anything.
fn names(presented: &[String]) -> String {
    const SHOWN: usize = 4;
    let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let short = |name: &String| name.chars().take(100).map(printable).collect::<String>();
    let mut text: Vec<String> = presented.iter().take(SHOWN).map(short).collect();
    match presented.len() {
        0 => text.push("none at all".to_owned()),
        more if more > SHOWN => text.push(format!("and {} more", more - SHOWN)),
        _ => {}
    }
    text.join(", ")
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::pki_types::UnixTime;
    use std::time::Duration;

    // What real servers make us say is in tests/faults and tests/e2e.
    #[test]
    fn certificates_that_cannot_be_accepted() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let long = vec!["x".repeat(1_000); 9];
        for (error, text) in [
            (
                CertificateError::ExpiredContext {
                    time: at(1_000_000),
                    not_after: at(1_000_000 - 3 * 86_400),
                },
                "expired 3 days ago".to_owned(),
            ),
            (
                CertificateError::NotValidYetContext {
                    time: at(0),
                    not_before: at(600),
                },
                "not valid yet, for another 10 minutes".to_owned(),
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("a").unwrap(),
                    presented: long,
                },
                format!("{}, and 5 more", "x".repeat(100)),
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: ServerName::try_from("a").unwrap(),
                    presented: Vec::new(),
                },
                "another name: none at all".to_owned(),
            ),
            (CertificateError::UnknownIssuer, "unknown issuer".to_owned()),
            (
                CertificateError::BadEncoding,
                "cannot be accepted: BadEncoding".to_owned(),
            ),
        ] {
            let said = certificate(&error);
            assert!(said.contains(&text), "{error:?}: {said}");
        }
    }

    #[test]
    fn spans_of_time_are_told_in_one_unit() {
        for (seconds, text) in [
            (0, "0 s"),
            (119, "119 s"),
            (120, "2 minutes"),
            (7_200, "2 hours"),
            (172_800, "2 days"),
            (u64::MAX, "213503982334601 days"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn errors_after_the_handshake_keep_their_kind_and_source() {
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let error = explain(io::Error::new(io::ErrorKind::InvalidData, alert));
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("asks for a client certificate"));
        let plain = explain(io::Error::from_raw_os_error(104));
        assert_eq!(
            plain.raw_os_error(),
            Some(104),
            "the system's own stays as it is"
        );
    }
}

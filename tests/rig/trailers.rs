//! Failures that come as late as they may.

use std::convert::Infallible;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Empty};
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

/// A service whose failures come in trailers, after a head that says nothing of them; tonic's own put both in one.
#[derive(Clone, Debug)]
pub struct InTrailers<S>(pub S);

impl<S: NamedService> NamedService for InTrailers<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for InTrailers<S>
where
    S: Service<http::Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.call(request).map(|answer| answer.map(late)).boxed()
    }
}

fn late(mut response: Response<Body>) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    for name in ["grpc-status", "grpc-message"] {
        if let Some(value) = response.headers_mut().remove(name) {
            trailers.insert(name, value);
        }
    }
    match trailers.is_empty() {
        true => response,
        false => response.map(|_| {
            let trailers = std::future::ready(Some(Ok(trailers)));
            Body::new(Empty::<Bytes>::new().with_trailers(trailers))
        }),
    }
}

package ocibridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Retry says how long a broken transfer is tried again. Zero fields take the
// values of DefaultRetry.
type Retry struct {
	Attempts int           // in a row without a new byte, before the transfer has failed
	Wait     time.Duration // before the second attempt; doubled with each further one
	Stall    time.Duration // without a byte, after which a connection counts as broken
}

// DefaultRetry rides out a registry's restart: about half a minute.
var DefaultRetry = Retry{Attempts: 6, Wait: time.Second, Stall: time.Minute}

func (r Retry) withDefaults() Retry {
	if r.Attempts <= 0 {
		r.Attempts = DefaultRetry.Attempts
	}
	if r.Wait <= 0 {
		r.Wait = DefaultRetry.Wait
	}
	if r.Stall <= 0 {
		r.Stall = DefaultRetry.Stall
	}
	return r
}

// wait waits before the attempt that follows the nth failure, and reports
// whether ctx lets it.
func (r Retry) wait(ctx context.Context, n int) bool {
	t := time.NewTimer(r.Wait << (n - 1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// passes reports whether what a registry's error says may be over soon. It is
// not for a name that nobody knows, for a registry without TLS, and for one that
// limits requests: go.podman.io/image has waited then as long as it was told to.
func passes(err error) bool {
	var dns *net.DNSError
	if fault.KindOf(err) != fault.Unavailable || errors.As(err, &dns) && dns.IsNotFound {
		return false
	}
	return fault.HintOf(err) != httpHint && !errors.Is(err, docker.ErrTooManyRequests)
}

// blobs opens the blobs of an image.
type blobs struct {
	src    types.ImageSource
	resume *resumer // registries only
	retry  Retry
	log    *slog.Logger
	mu     sync.Mutex // held around GetBlob where the transport is not thread-safe
}

// open returns a stream of a blob that continues by itself where a connection
// breaks.
func (b *blobs) open(ctx context.Context, info types.BlobInfo) *blobReader {
	return &blobReader{blobs: b, ctx: ctx, info: info}
}

// from opens a blob at an offset.
func (b *blobs) from(ctx context.Context, info types.BlobInfo, offset int64) (io.ReadCloser, error) {
	if offset > 0 && b.resume != nil {
		return b.resume.from(ctx, info.Digest, offset)
	}
	if !b.src.HasThreadSafeGetBlob() {
		b.mu.Lock()
		defer b.mu.Unlock()
	}
	r, _, err := b.src.GetBlob(ctx, info, none.NoCache)
	return r, err
}

// blobReader reads a blob. Its errors are classified; io.EOF comes exactly at
// the size that the manifest says, more or fewer bytes are an error.
type blobReader struct {
	*blobs
	ctx  context.Context
	info types.BlobInfo

	body   io.ReadCloser
	cancel context.CancelFunc // of the connection
	watch  *time.Timer        // cancels a connection that stalls
	offset int64
	failed int // attempts in a row that brought nothing
	err    error
}

func (r *blobReader) Read(p []byte) (int, error) {
	for r.err == nil {
		if r.body == nil {
			if err := r.connect(); err != nil {
				r.err = r.failure(err)
				continue
			}
		}
		r.watch.Reset(r.retry.Stall)
		n, err := r.body.Read(p)
		r.watch.Stop()
		r.offset += int64(n)
		if n > 0 {
			r.failed = 0
		}
		if r.info.Size >= 0 && r.offset > r.info.Size {
			r.err = fault.New(fault.Untrusted, tamperedHint, "blob %s is longer than the %d bytes that the manifest says", r.info.Digest, r.info.Size)
			r.hangUp()
			continue
		}
		switch {
		case err == nil:
		case err == io.EOF && (r.info.Size < 0 || r.offset == r.info.Size):
			r.err = io.EOF
			r.hangUp()
		default:
			r.hangUp()
			r.err = r.failure(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// connect opens the blob at the offset reached.
func (r *blobReader) connect() error {
	ctx, cancel := context.WithCancel(r.ctx)
	watch := time.AfterFunc(r.retry.Stall, cancel)
	body, err := r.from(ctx, r.info, r.offset)
	if err != nil {
		cancel()
		watch.Stop()
		return err
	}
	r.body, r.cancel, r.watch = body, cancel, watch
	return nil
}

// hangUp ends the connection.
func (r *blobReader) hangUp() {
	if r.body == nil {
		return
	}
	r.watch.Stop()
	r.cancel()
	if err := r.body.Close(); err != nil {
		r.log.Debug("closing a connection", "blob", r.info.Digest, "error", err)
	}
	r.body = nil
}

// failure decides what an error of a connection means: nil after the wait
// before another attempt, or the error that ends the transfer.
func (r *blobReader) failure(cause error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	r.failed++
	early := errors.Is(cause, io.EOF)
	if early {
		cause = io.ErrUnexpectedEOF
	}
	if errors.Is(cause, context.Canceled) {
		cause = fmt.Errorf("no data for %s: %w", r.retry.Stall, context.DeadlineExceeded)
	}
	err := classify(cause, fmt.Sprintf("fetching blob %s", r.info.Digest))
	if fault.KindOf(err) != fault.Unavailable || r.failed >= r.retry.Attempts {
		if early {
			return fault.New(fault.Untrusted, tamperedHint, "blob %s ends after %d of the %d bytes that the manifest says", r.info.Digest, r.offset, r.info.Size)
		}
		return err
	}
	r.log.Info("connection broken, continuing", "blob", r.info.Digest, "offset", r.offset, "attempt", r.failed, "error", cause)
	if !r.retry.wait(r.ctx, r.failed) {
		return context.Cause(r.ctx)
	}
	return nil
}

const tamperedHint = "the registry or something on the way changed the data; try again, and if it stays so, do not trust that registry"

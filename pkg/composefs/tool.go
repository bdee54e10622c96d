package composefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/fsverity"
)

// WriteImageWith writes a tree as an image by means of a mkcomposefs program, which
// gets a dump. It is there for those who trust that program more than
// WriteImage; the bytes are the same. sha512 digests are refused, as
// mkcomposefs would cut them. With program "" it is WriteImage.
func WriteImageWith(ctx context.Context, program string, w io.Writer, src Source, o ImageOptions) (ImageInfo, error) {
	if program == "" {
		return WriteImage(w, src, o)
	}
	t, err := src.tree()
	if err != nil {
		return ImageInfo{}, err
	}
	info, err := runTool(ctx, program, w, t, o)
	if err != nil {
		return ImageInfo{}, fmt.Errorf("write composefs image with %s: %w", program, err)
	}
	return info, nil
}

func runTool(ctx context.Context, program string, w io.Writer, t *Tree, o ImageOptions) (ImageInfo, error) {
	if o.Algorithm == 0 {
		o.Algorithm = SHA256
	}
	inodes, long := uint64(0), ""
	_ = t.Walk(func(path string, e Dirent) error {
		if !e.Link {
			inodes++
		}
		if len(e.Inode.Digest) > SHA256.Size() {
			long = path
		}
		return nil
	})
	if long != "" {
		return ImageInfo{}, fault.New(fault.Usage, "use the built-in writer for sha512 stores", "%s has a sha512 digest", long)
	}
	cmd := exec.CommandContext(ctx, program,
		fmt.Sprintf("--min-version=%d", o.MinVersion), fmt.Sprintf("--max-version=%d", o.MaxVersion), "--from-file", "-", "-")
	dump, err := cmd.StdinPipe()
	if err != nil {
		return ImageInfo{}, err
	}
	verity := fsverity.New(o.Algorithm)
	var stderr strings.Builder
	cmd.Stdout = io.MultiWriter(w, verity)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return ImageInfo{}, fault.New(fault.NotFound, "install composefs, or leave out --composefs-tool", "%w", err)
		}
		return ImageInfo{}, err
	}
	dumpErr := WriteDump(dump, t)
	if err := dump.Close(); dumpErr == nil {
		dumpErr = err
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return ImageInfo{}, ctx.Err()
		}
		return ImageInfo{}, fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	if dumpErr != nil {
		return ImageInfo{}, dumpErr
	}
	return ImageInfo{Size: int64(verity.Size()), Inodes: inodes, Digest: verity.Sum()}, nil
}

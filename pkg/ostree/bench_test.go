package ostree

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/kedge-os/kedge/internal/lab"
	"github.com/kedge-os/kedge/pkg/fstree"
)

// benchTree is the directory that the benchmarks commit: KEDGE_BENCH_TREE, such
// as the root of the lab's base image.
func benchTree(b *testing.B) string {
	dir := os.Getenv("KEDGE_BENCH_TREE")
	if dir == "" {
		b.Skip("KEDGE_BENCH_TREE names no directory")
	}
	lab.NeedRoot(b)
	return dir
}

func BenchmarkCommitDir(b *testing.B) {
	dir := benchTree(b)
	for b.Loop() {
		r, path := emptyRepo(b, Bare)
		commitDir(b, r, dir, "bench", DirOptions{})
		b.StopTimer()
		check(b, os.RemoveAll(path))
		b.StartTimer()
	}
}

func BenchmarkOstreeCommitDir(b *testing.B) {
	dir := benchTree(b)
	lab.Need(b, "ostree")
	for b.Loop() {
		_, path := emptyRepo(b, Bare)
		run(b, "ostree", "commit", "--repo="+path, "--branch=bench", "--tree=dir="+dir)
		b.StopTimer()
		check(b, os.RemoveAll(path))
		b.StartTimer()
	}
}

func BenchmarkStored(b *testing.B) {
	dir := benchTree(b)
	r, path := emptyRepo(b, Bare)
	sum := commitDir(b, r, dir, "bench", DirOptions{})
	base := filepath.Dir(path)
	ctx := context.Background()
	b.Run("CommitAgain", func(b *testing.B) {
		for b.Loop() {
			commitDir(b, r, dir, "again", DirOptions{})
		}
	})
	b.Run("Checkout", func(b *testing.B) {
		root := must[*os.Root](b)(os.OpenRoot(base))
		defer root.Close()
		for b.Loop() {
			check(b, r.Checkout(ctx, sum, root, "checkout", CheckoutOptions{}))
			b.StopTimer()
			check(b, os.RemoveAll(filepath.Join(base, "checkout")))
			b.StartTimer()
		}
	})
	b.Run("OstreeCheckout", func(b *testing.B) {
		for b.Loop() {
			run(b, "ostree", "checkout", "-H", "--repo="+path, sum.String(), filepath.Join(base, "checkout"))
			b.StopTimer()
			check(b, os.RemoveAll(filepath.Join(base, "checkout")))
			b.StartTimer()
		}
	})
	b.Run("ReadTree", func(b *testing.B) {
		for b.Loop() {
			must[*fstree.Tree](b)(r.ReadTree(ctx, sum))
		}
	})
	b.Run("Fsck", func(b *testing.B) {
		for b.Loop() {
			must[*FsckResult](b)(r.Fsck(ctx, FsckOptions{}))
		}
	})
	b.Run("OstreeFsck", func(b *testing.B) {
		for b.Loop() {
			run(b, "ostree", "fsck", "-q", "--repo="+path)
		}
	})
	b.Run("PruneNothing", func(b *testing.B) {
		for b.Loop() {
			must[PruneResult](b)(r.Prune(ctx, PruneOptions{}))
		}
	})
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
)

// Cut is a disk as a power cut may have left it: the first Flushed entries of a
// write log, and of the writes behind them some that the disk had not been told
// to keep.
type Cut struct {
	Flushed int
	Kept    []Piece
}

// Piece is a part of a logged write that reached the disk.
type Piece struct {
	Entry      int
	From, Size int64 // bytes of the entry's data
}

// tornAt is where a write can be torn: a disk keeps a physical sector whole, and
// those have 4096 bytes as have ext4's blocks.
const tornAt = 4096

// FlushCuts returns the cuts directly after each flush among entries from..to,
// and that before them all.
func (l *WriteLog) FlushCuts(from, to int) []Cut {
	cuts := []Cut{{Flushed: from}}
	for i := from; i < to; i++ {
		// Of flushes in a row one is enough.
		if l.Entries[i].Flush() && (i == 0 || !l.Entries[i-1].Flush()) {
			cuts = append(cuts, Cut{Flushed: i + 1})
		}
	}
	return cuts
}

// RandomCuts returns n cuts between entries from and to: each at a random instant,
// with the writes since the last flush before it there, missing, or torn. Nothing
// orders writes between two flushes, and no later one is needed for an earlier.
func (l *WriteLog) RandomCuts(from, to, n int, rnd *rand.Rand) []Cut {
	// The instants of short runs of writes are as likely as those of long ones:
	// commits are short.
	var runs [][2]int // first write, entry after the last
	for i := from; i < to; i++ {
		switch {
		case l.Entries[i].Flush():
		case i == from || l.Entries[i-1].Flush():
			runs = append(runs, [2]int{i, i + 1})
		default:
			runs[len(runs)-1][1] = i + 1
		}
	}
	var cuts []Cut
	for range n {
		if len(runs) == 0 {
			break
		}
		run := runs[rnd.IntN(len(runs))]
		cuts = append(cuts, l.randomCut(run[0], run[0]+1+rnd.IntN(run[1]-run[0]), rnd))
	}
	return cuts
}

func (l *WriteLog) randomCut(flushed, now int, rnd *rand.Rand) Cut {
	c := Cut{Flushed: flushed}
	whole := []float64{0.1, 0.5, 0.9}[rnd.IntN(3)]
	for i := flushed; i < now; i++ {
		e := l.Entries[i]
		switch {
		case rnd.Float64() < whole:
			c.Kept = append(c.Kept, Piece{Entry: i, Size: e.Length})
		case rnd.IntN(4) == 0 && e.Length > tornAt:
			for from := int64(0); from < e.Length; from += tornAt {
				if rnd.IntN(2) == 0 {
					c.Kept = append(c.Kept, Piece{Entry: i, From: from, Size: min(tornAt, e.Length-from)})
				}
			}
		}
	}
	return c
}

// Replayer makes the disks of cuts. It goes forward through the log: cuts have to
// come in the order of Flushed.
type Replayer struct {
	log  *WriteLog
	disk *os.File // as of the first done entries
	done int
}

// NewReplayer replays a log on the image of the disk as it was before the first
// entry, which it changes.
func NewReplayer(log *WriteLog, image string) (*Replayer, error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	return &Replayer{log: log, disk: f}, err
}

// Close closes the image.
func (r *Replayer) Close() error { return r.disk.Close() }

// Forward brings the image to where the first n entries are done.
func (r *Replayer) Forward(n int) error {
	if n < r.done {
		return errors.New("a write log is not replayed backwards")
	}
	for ; r.done < n; r.done++ {
		if err := r.apply(r.disk, Piece{Entry: r.done, Size: r.log.Entries[r.done].Length}); err != nil {
			return err
		}
	}
	return nil
}

// Make makes the disk of a cut, as a new sparse file.
func (r *Replayer) Make(ctx context.Context, c Cut, path string) error {
	if err := r.Forward(c.Flushed); err != nil {
		return err
	}
	if _, err := Command(ctx, "cp", "--sparse=always", "--reflink=auto", r.disk.Name(), path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, p := range c.Kept {
		if err = r.apply(f, p); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

func (r *Replayer) apply(f *os.File, p Piece) error {
	e := r.log.Entries[p.Entry]
	if e.Flush() {
		return nil
	}
	b, err := r.log.Data(LogEntry{Length: p.Size, at: e.at + p.From})
	if err == nil {
		_, err = f.WriteAt(b, e.Offset+p.From)
	}
	if err != nil {
		return fmt.Errorf("replay entry %d of the write log: %w", p.Entry, err)
	}
	return nil
}

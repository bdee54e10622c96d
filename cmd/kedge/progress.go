package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// renderer shows progress somewhere. Its methods are called one at a time.
type renderer interface {
	// begin is called when it is known what will be fetched.
	begin(s snapshot)
	// tick is called a few times a second while bytes arrive.
	tick(s snapshot)
	// done is called when every layer is there.
	done(s snapshot)
	// step is called when a task without bytes to count begins.
	step(task, description string)
	// close is called last; ok says that what was shown has succeeded.
	close(ok bool)
}

// snapshot is how far a fetch is.
type snapshot struct {
	layers  []layerState
	elapsed time.Duration
	rate    float64 // bytes a second over the last seconds
}

type layerState struct {
	ocibridge.LayerProgress
	bytes int64
	done  bool
}

// totals returns the bytes and layers that are fetched, to fetch, and cached.
func (s snapshot) totals() (t struct {
	bytes, total, cached             int64
	layers, layersTotal, layersReady int
},
) {
	for _, l := range s.layers {
		if l.Cached {
			t.layersReady++
			t.cached += l.Size
			continue
		}
		t.layersTotal++
		t.total += l.Size
		t.bytes += min(l.bytes, l.Size)
		if l.done {
			t.layers++
		}
	}
	return t
}

// left estimates the time until everything has arrived; 0 while unknown.
func (s snapshot) left() time.Duration {
	t := s.totals()
	if s.rate <= 0 {
		return 0
	}
	return time.Duration(float64(t.total-t.bytes) / s.rate * float64(time.Second))
}

const (
	tickEvery  = 200 * time.Millisecond
	rateWindow = 5 * time.Second
)

// progress counts what pkg/host reports and hands it to the renderers.
type progress struct {
	renderers []renderer

	mu       sync.Mutex
	layers   []layerState
	started  time.Time
	samples  []sample
	stop     chan struct{}
	fetching bool
}

type sample struct {
	at    time.Time
	bytes int64
}

// newProgress returns the progress that the global flags ask for.
func (e *env) newProgress() (*progress, error) {
	p := &progress{}
	if e.progressFD >= 0 {
		var st unix.Stat_t
		if err := unix.Fstat(e.progressFD, &st); err != nil {
			return nil, fault.New(fault.Usage, "open the descriptor for writing: kedge --progress-fd 3 … 3>FILE", "--progress-fd %d: %w", e.progressFD, err)
		}
		p.renderers = append(p.renderers, newJSONLines(os.NewFile(uintptr(e.progressFD), "progress")))
	}
	switch {
	case e.quiet:
	case isTerminal(e.stderr):
		p.renderers = append(p.renderers, &terminal{w: e.stderr, width: terminalWidth(e.stderr)})
	default:
		p.renderers = append(p.renderers, &plain{w: e.stderr})
	}
	return p, nil
}

// Layers implements ocibridge.Progress.
func (p *progress) Layers(layers []ocibridge.LayerProgress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers = make([]layerState, len(layers))
	for i, l := range layers {
		p.layers[i].LayerProgress = l
	}
	p.started = time.Now()
	p.samples = []sample{{at: p.started}}
	p.fetching = true
	s := p.snapshot()
	for _, r := range p.renderers {
		r.begin(s)
	}
	if s.totals().layersTotal == 0 {
		p.finish()
		return
	}
	p.stop = make(chan struct{})
	go p.run(p.stop)
}

// Bytes implements ocibridge.Progress.
func (p *progress) Bytes(layer int, n int64) {
	p.mu.Lock()
	p.layers[layer].bytes += n
	p.mu.Unlock()
}

// Done implements ocibridge.Progress.
func (p *progress) Done(layer int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.layers[layer].done = true
	p.layers[layer].bytes = p.layers[layer].Size
	if t := p.snapshot().totals(); t.layers == t.layersTotal {
		p.finish()
	}
}

// Step implements host.Progress.
func (p *progress) Step(task, description string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halt()
	for _, r := range p.renderers {
		r.step(task, description)
	}
}

// Close ends the display of an operation that succeeded or not; it may be
// called more than once.
func (p *progress) Close(ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.halt()
	for _, r := range p.renderers {
		r.close(ok)
	}
	p.renderers = nil
}

func (p *progress) run(stop <-chan struct{}) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-stop:
			return
		case now := <-t.C:
			p.mu.Lock()
			if p.fetching {
				p.sample(now)
				s := p.snapshot()
				for _, r := range p.renderers {
					r.tick(s)
				}
			}
			p.mu.Unlock()
		}
	}
}

func (p *progress) sample(now time.Time) {
	p.samples = append(p.samples, sample{now, p.snapshot().totals().bytes})
	for len(p.samples) > 2 && now.Sub(p.samples[0].at) > rateWindow {
		p.samples = p.samples[1:]
	}
}

func (p *progress) snapshot() snapshot {
	s := snapshot{layers: p.layers, elapsed: time.Since(p.started)}
	if n := len(p.samples); n > 1 {
		first, last := p.samples[0], p.samples[n-1]
		if d := last.at.Sub(first.at).Seconds(); d > 0 {
			s.rate = float64(last.bytes-first.bytes) / d
		}
	}
	return s
}

// finish shows that everything is there.
func (p *progress) finish() {
	if !p.fetching {
		return
	}
	p.halt()
	s := p.snapshot()
	for _, r := range p.renderers {
		r.done(s)
	}
}

func (p *progress) halt() {
	p.fetching = false
	if p.stop != nil {
		close(p.stop)
		p.stop = nil
	}
}

// size writes a number of bytes with the units that disks are sold in.
func size(n int64) string {
	const unit = 1000
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, names := float64(n)/unit, "kMGTPE"
	for v >= unit {
		v /= unit
		names = names[1:]
	}
	return fmt.Sprintf("%.1f %cB", v, names[0])
}

package powercut

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kedge-os/kedge/e2e/powercut/story"
	"github.com/kedge-os/kedge/internal/lab"
)

// TestPartition cuts the power at instants of every change of the boot menu on an
// EFI system partition: FAT, which has no journal, as Linux writes it and the
// firmware reads it.
func TestPartition(t *testing.T) {
	if os.Getenv("KEDGE_NIGHTLY") == "" {
		t.Skip("a thousand disks; KEDGE_NIGHTLY=1 runs it")
	}
	lab.NeedRoot(t)
	lab.Need(t, "qemu-system-x86_64", "mkfs.vfat", "fsck.fat", "go")
	dir := scratch(t)
	var table strings.Builder
	var all partitionResult
	for _, p := range livePartitions(t, dir) {
		r := p.cut(t, dir)
		fmt.Fprintf(&table, "| %s | %d | %d | %d | %d |\n", p.name(), r.states, r.old, r.fresh, r.lost)
		if p.control && r.lost == 0 {
			t.Errorf("%s: of %d partitions none is lost: the test proves nothing", p.name(), r.states)
		}
		if !p.control {
			all.merge(r)
			if r.lost > 0 {
				t.Errorf("%s: of %d partitions %d are lost", p.name(), r.states, r.lost)
			}
		}
	}
	t.Logf("\n| menu | states | old default | new default | lost |\n|---|---|---|---|---|\n%s", &table)
	for _, f := range slices.Sorted(maps.Keys(all.findings)) {
		t.Logf("fsck.fat, %d times: %s", all.findings[f], f)
	}
}

// aPartition is what became of one.
type aPartition struct {
	style   string
	control bool // nothing was flushed
	record  *record
}

func (p *aPartition) name() string {
	if p.control {
		return p.style + " without syncs"
	}
	return p.style
}

func livePartitions(t *testing.T, dir string) []*aPartition {
	t.Helper()
	guest := filepath.Join(dir, "guest")
	if _, err := lab.Command(t.Context(), "env", "CGO_ENABLED=0", "go", "build", "-C", lab.SourceDir(), "-trimpath",
		"-tags", lab.BuildTags, "-ldflags", "-s -w", "-o", guest, "./e2e/powercut/guest"); err != nil {
		t.Fatal(err)
	}
	medium := lab.Medium{Dir: dir, Logged: true, Files: map[string]string{"usr/bin/guest": guest}}
	command := "modprobe -a vfat nls_cp437 nls_ascii nls_iso8859-1 nls_utf8 || true\nguest esp"
	before := filepath.Join(dir, "partition")
	if _, err := lab.Command(t.Context(), "mkfs.vfat", "-C", "-F", "32", "-s", "1", "-n", "ESP", before, fmt.Sprint(story.PartitionSize/1024)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(before, story.PartitionSize+story.MarkSize); err != nil {
		t.Fatal(err)
	}
	var list []*aPartition
	for _, style := range []string{"ostree", "composefs"} {
		for _, control := range []bool{false, true} {
			p := &aPartition{style: style, control: control}
			p.record = &record{control: control, before: before, after: filepath.Join(dir, strings.ReplaceAll(p.name(), " ", "-"))}
			copyDisk(t, before, p.record.after)
			medium.Disks = append(medium.Disks, p.record.after)
			command += fmt.Sprintf(" /dev/vd%c:%s", 'a'+len(list), style)
			if control {
				command += ":nosync"
			}
			list = append(list, p)
		}
	}
	var err error
	if medium.Kernel, medium.Initramfs, err = lab.BootFiles(lab.ComposefsBackendImage(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := medium.Run(t.Context(), command+"\n", 20*time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.record.log, err = lab.OpenWriteLog(p.record.after + ".log"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.record.log.Close() })
		p.record.checkLog(t, dir)
	}
	return list
}

// partitionResult counts partitions by what boots, and fsck.fat's findings by
// their kind.
type partitionResult struct {
	result
	findings map[string]int
}

func (r *partitionResult) merge(o *partitionResult) {
	r.add(&o.result)
	if r.findings == nil {
		r.findings = map[string]int{}
	}
	for f, n := range o.findings {
		r.findings[f] += n
	}
}

// cut makes and checks the partitions of a log. The first change has nothing
// before it that boots.
func (p *aPartition) cut(t *testing.T, dir string) *partitionResult {
	t.Helper()
	marks, err := p.record.log.Marks(story.PartitionSize)
	if err != nil || len(marks) != 2*len(story.Changes) {
		t.Fatalf("the log has the marks %v (%v), want two for each of %d changes", marks, err, len(story.Changes))
	}
	res := &partitionResult{findings: map[string]int{}}
	work := newReplayer(t, p.record, filepath.Join(dir, "work.img"))
	rnd := rand.New(rand.NewPCG(seed, 0))
	limit := make(chan struct{}, 2*runtime.NumCPU())
	var checks sync.WaitGroup
	var mu sync.Mutex
	for i, c := range story.Changes {
		if i == 0 {
			continue
		}
		s := span{name: c.Name, begin: marks[2*i].Entry + 1, end: marks[2*i+1].Entry, steps: 2, old: story.Changes[i-1].Items[0], fresh: c.Items[0]}
		for n, cut := range p.record.cuts(s, rnd) {
			image := filepath.Join(dir, fmt.Sprintf("cut-%d-%d.img", i, n))
			limit <- struct{}{}
			if err := work.Make(t.Context(), cut, image); err != nil {
				t.Fatal(err)
			}
			checks.Go(func() {
				defer func() { os.Remove(image); <-limit }()
				id, err := p.check(image, i)
				findings := fatFindings(t, image)
				mu.Lock()
				defer mu.Unlock()
				res.count(s, id, err)
				for _, f := range findings {
					res.findings[f]++
				}
				if err != nil && !p.control {
					t.Logf("%s: change %d (%s), power cut after entry %d of %d..%d with %d pieces of later writes: %v", p.name(), i, s.name, cut.Flushed, s.begin, s.end, len(cut.Kept), err)
				}
			})
		}
	}
	checks.Wait()
	return res
}

// check returns the deployment that a partition boots in the midst of a change, or
// why it boots none: the default entry is that of before or after the change, its
// kernel and initramfs are whole, and so is the program that the firmware starts.
func (p *aPartition) check(image string, change int) (id string, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(image), "esp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	esp, err := openFAT(image)
	if err == nil {
		err = esp.copyEntries(filepath.Join(dir, "loader/entries"))
	}
	if err != nil {
		return "", err
	}
	e, err := lab.DefaultEntry(dir)
	if err != nil {
		return "", err
	}
	style := story.Style(p.style)
	now, before := story.Changes[change], story.Changes[change-1]
	for _, id = range []string{before.Items[0], now.Items[0]} {
		if e.Options == style.Options(id) {
			break
		}
	}
	if e.Options != style.Options(id) {
		return "", fmt.Errorf("the default is %s with the options %s, want that of %s or %s", e.File, e.Options, before.Items[0], now.Items[0])
	}
	files, err := story.Item(style, id).Files()
	if err != nil {
		return "", err
	}
	for i, name := range []string{e.Linux, e.Initrd} {
		r, err := files[i].Open()
		if err != nil {
			return "", err
		}
		want := make([]byte, files[i].Size)
		if _, err := r.Read(want); err != nil {
			return "", err
		}
		if err := esp.holds(name, want); err != nil {
			return "", fmt.Errorf("entry %s: %w", e.File, err)
		}
	}
	const fallback = "/EFI/BOOT/BOOTX64.EFI"
	if esp.holds(fallback, story.Program(before.Program)) != nil {
		if err := esp.holds(fallback, story.Program(now.Program)); err != nil {
			return "", err
		}
	}
	return id, nil
}

// holds checks that a file has the right bytes.
func (f *fat) holds(name string, want []byte) error {
	have, err := f.read(name)
	if err == nil && !bytes.Equal(have, want) {
		err = fmt.Errorf("%s is not whole: %d bytes, want %d", name, len(have), len(want))
	}
	return err
}

// copyEntries copies the boot entries that systemd-boot shows: it passes over what
// cannot be read, and what names nothing to boot.
func (f *fat) copyEntries(dir string) error {
	const entries = "/loader/entries"
	at, err := f.find(entries)
	if err != nil {
		return err
	}
	files, err := f.list(at.first)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, file := range files {
		text, err := f.chain(file.first, file.size)
		if err != nil || file.dir || !strings.HasSuffix(file.name, ".conf") || strings.Contains(file.name, "/") || !bytes.Contains(text, []byte("\nlinux ")) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, file.name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

var (
	fatPath   = regexp.MustCompile(`^/\S*`)
	fatNumber = regexp.MustCompile(`\b(0x)?[0-9a-f]*[0-9][0-9a-f]*\b`)
)

// fatFindings returns what fsck.fat says of a partition, each kind once.
func fatFindings(t *testing.T, image string) []string {
	// It ends with 1 where it finds something.
	out, _ := exec.CommandContext(t.Context(), "fsck.fat", "-n", image).CombinedOutput()
	kinds := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		line = fatNumber.ReplaceAllString(strings.TrimSpace(line), "N")
		if line == "" || strings.HasPrefix(line, "fsck.fat N") || strings.Contains(line, image) || fatPath.MatchString(line) || strings.HasPrefix(line, "Leaving") || strings.HasPrefix(line, "N:") {
			continue
		}
		kinds[line] = true
	}
	return slices.Collect(maps.Keys(kinds))
}

package blockdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// maxDepth bounds what is stacked: partitions, encryption, RAID, volumes.
const maxDepth = 8

// Disks returns the names of the disks that a device lies on, "vda": its own, or
// those below what is stacked on them. machine is the root of the running machine.
func Disks(machine, device string) ([]string, error) {
	if real, err := filepath.EvalSymlinks(device); err == nil {
		device = real // /dev/mapper/NAME
	}
	var disks []string
	if err := disksOf(machine, filepath.Base(device), maxDepth, &disks); err != nil {
		return nil, err
	}
	slices.Sort(disks)
	return slices.Compact(disks), nil
}

func class(machine, name string) string { return filepath.Join(machine, "sys/class/block", name) }

func disksOf(machine, name string, depth int, disks *[]string) error {
	if depth == 0 {
		return nil
	}
	dir := class(machine, name)
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		// /sys/class/block/vda2 leads to …/block/vda/vda2.
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return err
		}
		return disksOf(machine, filepath.Base(filepath.Dir(real)), depth-1, disks)
	}
	below, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(below) == 0 {
		*disks = append(*disks, name)
	}
	for _, e := range below {
		if err := disksOf(machine, e.Name(), depth-1, disks); err != nil {
			return err
		}
	}
	return nil
}

// Partitions returns the partitions of a disk that the kernel knows; none of a
// disk that has no device node.
func Partitions(machine, disk string) ([]Partition, error) {
	f, err := os.Open(filepath.Join(machine, "dev", disk))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	table, err := ReadGPT(f)
	if err != nil || len(table) == 0 {
		return nil, err
	}
	entries, err := os.ReadDir(class(machine, disk))
	if err != nil {
		return nil, err
	}
	var list []Partition
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(class(machine, disk), e.Name(), "partition"))
		if err != nil {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			continue
		}
		i := slices.IndexFunc(table, func(p Partition) bool { return p.Number == n })
		if i >= 0 {
			table[i].Device = filepath.Join(machine, "dev", e.Name())
			list = append(list, table[i])
		}
	}
	return list, nil
}

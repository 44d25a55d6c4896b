// Checks one log of an audit export with Go's own golang.org/x/mod/sumdb packages, which share no code with Bulkhead:
// the checkpoint's signature, every record's inclusion proof and consistency from older tree sizes, all from the tiles.
package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const tileHeight = 8
const bundleWidth = 256

// tileDir reads C2SP tlog-tiles paths, which leave out the height that x/mod puts first.
type tileDir string

func (d tileDir) Height() int { return tileHeight }

func (d tileDir) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		data, err := os.ReadFile(filepath.Join(string(d), "tile", strings.TrimPrefix(t.Path(), "tile/8/")))
		if err != nil {
			return nil, err
		}
		out[i] = data
	}
	return out, nil
}

func (d tileDir) SaveTiles([]tlog.Tile, [][]byte) {}

func entries(dir string, size int64) ([][]byte, error) {
	var out [][]byte
	for first := int64(0); first < size; first += bundleWidth {
		tile := tlog.Tile{H: tileHeight, L: 0, N: first / bundleWidth, W: int(min(bundleWidth, size-first))}
		data, err := os.ReadFile(filepath.Join(dir, "tile", "entries", strings.TrimPrefix(tile.Path(), "tile/8/0/")))
		if err != nil {
			return nil, err
		}
		for len(data) > 0 {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, fmt.Errorf("bundle %d is malformed", tile.N)
			}
			n := 2 + int(binary.BigEndian.Uint16(data))
			out = append(out, data[2:n])
			data = data[n:]
		}
	}
	if int64(len(out)) != size {
		return nil, fmt.Errorf("%d entries for a tree of %d", len(out), size)
	}
	return out, nil
}

func check(dir string) (int64, error) {
	keys, err := os.ReadFile(filepath.Join(dir, "key.vkey"))
	if err != nil {
		return 0, err
	}
	verifier, err := note.NewVerifier(strings.SplitN(string(keys), "\n", 2)[0])
	if err != nil {
		return 0, err
	}
	signed, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return 0, err
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return 0, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[3] != "" {
		return 0, fmt.Errorf("the checkpoint does not have three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return 0, err
	}
	rootBytes, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(rootBytes) != tlog.HashSize {
		return 0, fmt.Errorf("the root hash is malformed")
	}
	tree := tlog.Tree{N: size, Hash: tlog.Hash(rootBytes)}
	reader := tlog.TileHashReader(tree, tileDir(dir))
	records, err := entries(dir, size)
	if err != nil {
		return 0, err
	}
	for i, record := range records {
		proof, err := tlog.ProveRecord(size, int64(i), reader)
		if err != nil {
			return 0, err
		}
		if err := tlog.CheckRecord(proof, size, tree.Hash, int64(i), tlog.RecordHash(record)); err != nil {
			return 0, fmt.Errorf("record %d: %w", i, err)
		}
	}
	for old := int64(1); old < size; old += 1 + size/16 {
		oldHash, err := tlog.TreeHash(old, reader)
		if err != nil {
			return 0, err
		}
		proof, err := tlog.ProveTree(size, old, reader)
		if err != nil {
			return 0, err
		}
		if err := tlog.CheckTree(proof, size, tree.Hash, old, oldHash); err != nil {
			return 0, fmt.Errorf("consistency from %d: %w", old, err)
		}
	}
	return size, nil
}

func main() {
	size, err := check(os.Args[1])
	if err != nil {
		fmt.Println("bad:", err)
		os.Exit(1)
	}
	fmt.Println("ok", size)
}

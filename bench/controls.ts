/** What each control costs. */
export interface ControlResult {
  readonly control: string;
  readonly with: string;
  readonly without: string;
  readonly unit: string;
  readonly cost: string;
  readonly note: string;
}

export async function measureControls(_options: { seconds: number; runs: number; note: (text: string) => void }): Promise<readonly ControlResult[]> {
  return [];
}
